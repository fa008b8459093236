"""Speed, measured: `python -m melp.benchmark`."""
