"""External encoders for `evaluate.py ... --against examples/encoders.py:CLASS`: patterns to copy for your own.

    ENCODER=encoder.onnx python evaluate.py linear-probe --model MODEL --data DATA \\
        --against examples/encoders.py:OnnxAt100Hz

`encode` gets recordings in mV of the same leads and length, as they are stored, and returns a row of features for
each; whatever else the encoder needs (its rate, its length, its order of leads, its scaling) happens in here.
"""

import os

import numpy as np
import torch
from safetensors.torch import load_file

from signal_melp import resample_ecg

TWELVE = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
EIGHT = ["I", "II", "V1", "V2", "V3", "V4", "V5", "V6"]


def in_order(signals: np.ndarray, leads: list[str], wanted: list[str]) -> np.ndarray:
    """Returns the wanted leads in their order; those that a recording lacks are 0 mV."""
    ordered = np.zeros((len(signals), len(wanted), signals.shape[2]), dtype=np.float32)
    for row, lead in enumerate(wanted):
        if lead in leads:
            ordered[:, row] = signals[:, leads.index(lead)]
    return ordered


def windows(signals: np.ndarray, samples: int) -> np.ndarray:
    """Cuts (recordings, leads, n) into (recordings, windows, leads, samples); a shorter recording is padded with 0."""
    missing = samples - signals.shape[2]
    if missing > 0:
        signals = np.pad(signals, ((0, 0), (0, 0), (0, missing)))
    starts = range(0, signals.shape[2] - samples + 1, samples)
    return np.stack([signals[:, :, start : start + samples] for start in starts], axis=1)


class OnnxAt100Hz:
    """An ONNX file that takes (n, 12, 500): 100 Hz, 5 s, each lead standardised; the mean over all windows."""

    def __init__(self):
        import onnxruntime

        self.session = onnxruntime.InferenceSession(os.environ["ENCODER"])
        self.input = self.session.get_inputs()[0].name

    def encode(self, signals_mV: np.ndarray, sampling_rate: float, leads: list[str]) -> np.ndarray:
        """Returns (recordings, width)."""
        cut = windows(resample_ecg(in_order(signals_mV, leads, TWELVE), sampling_rate, 100), 500)
        cut = (cut - cut.mean(axis=-1, keepdims=True)) / (cut.std(axis=-1, keepdims=True) + 1e-6)
        (features,) = self.session.run(None, {self.input: cut.reshape(-1, 12, 500).astype(np.float32)})
        return features.reshape(*cut.shape[:2], -1).mean(axis=1)


class TorchEightLeads:
    """A torch module on the eight leads from which the other four follow, at 500 Hz, 10 s in mV."""

    def __init__(self):
        self.network = torch.nn.Sequential(  # in place of it, the encoder that is to be compared
            torch.nn.Conv1d(len(EIGHT), 16, 25, stride=5),
            torch.nn.GELU(),
            torch.nn.AdaptiveAvgPool1d(4),
            torch.nn.Flatten(),
        )
        self.network.load_state_dict(load_file(os.environ["ENCODER"]))
        self.network.eval()

    def encode(self, signals_mV: np.ndarray, sampling_rate: float, leads: list[str]) -> np.ndarray:
        """Returns (recordings, width)."""
        signals = resample_ecg(in_order(signals_mV, leads, EIGHT), sampling_rate, 500)
        with torch.inference_mode():
            return self.network(torch.from_numpy(windows(signals, 5000)[:, 0])).numpy()
