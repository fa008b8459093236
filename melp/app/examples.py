"""Simulated ECGs that the app shows without a file: drawn when asked for, stored nowhere."""

import threading
from functools import lru_cache

import numpy as np

from signal_melp import EcgBlock

# Name for a visitor -> what the simulator's own truth must say of the patient, and what it must not.
EXAMPLES = {
    "Sinus rhythm": ({"sinus rhythm"}, None),
    "Atrial fibrillation": ({"atrial fibrillation"}, None),
    "Left bundle branch block": ({"sinus rhythm", "left bundle branch block"}, None),
    "Complete AV block": ({"third degree av block"}, None),
    "Anterior infarction": ({"sinus rhythm"}, "infarct"),
}
