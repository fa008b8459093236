"""`python -m melp.app`: what app.py is in a clone."""

from melp.app.command import main

if __name__ == "__main__":
    main(name="-m melp.app")
