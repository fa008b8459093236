"""`python -m melp.predict`: what predict.py is in a clone."""

from melp.predict.command import main

if __name__ == "__main__":
    main(name="-m melp.predict")
