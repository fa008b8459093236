"""The stages of training: what each learns from, its model, its losses, its validation and what it leaves behind.

The loop in `train.py` knows none of this; it asks a stage for rows, a collate function and a dict of named losses.
"""

from stages.ecg import EcgStage
from stages.language import LanguageStage
from stages.melp import MelpStage

STAGES = {"language": LanguageStage, "ecg": EcgStage, "melp": MelpStage}
