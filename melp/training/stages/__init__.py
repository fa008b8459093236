"""The stages of training: what each learns from, its model, its losses, its validation and what it leaves behind.

The loop in `train.py` knows none of this; it asks a stage for rows, a collate function and a dict of named losses.
"""

import importlib

_CLASSES = {"language": "LanguageStage", "ecg": "EcgStage", "melp": "MelpStage"}
_MODULES = {"language": "language", "ecg": "ecg", "melp": "multiscale"}


def stage_class(stage: str) -> type:
    """Returns the class of a stage; its module, and torch with it, are imported now."""
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[stage]}"), _CLASSES[stage])
