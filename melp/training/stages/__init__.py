"""The stages of training: what each learns from, its model, its losses, its validation and what it leaves behind.

The loop in `train.py` knows none of this; it asks a stage for rows, a collate function and a dict of named losses.
"""

from melp.training.stages.ecg import EcgStage
from melp.training.stages.language import LanguageStage
from melp.training.stages.multiscale import MelpStage

STAGES = {"language": LanguageStage, "ecg": EcgStage, "melp": MelpStage}
