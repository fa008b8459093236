"""Predictions of any number of ECG files: findings, drafts, embeddings and pictures; the door is predict.py."""
