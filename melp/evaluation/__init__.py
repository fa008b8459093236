"""Evaluation: models, metrics, results and pictures, and the tasks of `evaluate.py` on top of them."""
