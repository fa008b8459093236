"""The tasks of `evaluate.py`, one file each, over what they share: models, metrics, results."""
