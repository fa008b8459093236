"""Search in a predict output by texts and recordings: `python -m melp.search`."""
