"""`python -m melp.evaluation`: what evaluate.py is in a clone."""

from melp.evaluation.command import main

if __name__ == "__main__":
    main(name="-m melp.evaluation")
