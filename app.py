"""Shows ECGs, findings and evidence in the browser: `python app.py --help`.

All of it is in `melp/app`; installed, the same command is `python -m melp.app`.
"""

from melp.app.command import main

if __name__ == "__main__":
    main()
