"""Reads ECG files of any format and says what a model finds in them: `python predict.py --help`.

All of it is in `melp/predict`; installed, the same command is `python -m melp.predict`.
"""

from melp.predict.command import main

if __name__ == "__main__":
    main()
