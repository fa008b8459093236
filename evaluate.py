"""Measures a model, one command per task: `python evaluate.py --help`.

All of it is in `melp/evaluation`; installed, the same command is `python -m melp.evaluation`.
"""

from melp.evaluation.command import main

if __name__ == "__main__":
    main()
