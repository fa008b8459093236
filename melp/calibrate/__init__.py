"""Writes `findings.json` of a model: what its similarities mean, fitted on labelled recordings."""
