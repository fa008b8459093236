"""External encoders behind a small protocol, to be measured by the same probes, draws and intervals.

    python evaluate.py linear-probe --model MODEL --data DATA --against my_encoders.py:TheirEncoder

names a class (or a function) that is called without arguments and gives an object with the method `encode`:

    class TheirEncoder:
        def encode(self, signals_mV, sampling_rate, leads):
            "(recordings, leads, samples) float32 in mV -> (recordings, width)"

A call gets recordings of the same leads and length, as they are stored: 500 Hz, the names of the leads in the order of
the samples. Resampling, cutting, scaling and the order of leads are the encoder's own. See `examples/encoders.py`.
"""

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Protocol

import numpy as np

_NAME = re.compile(r"(?P<module>[^:@]+):(?P<object>[A-Za-z_]\w*)")


class Encoder(Protocol):
    """Declares what an encoder has to offer."""

    def encode(self, signals_mV: np.ndarray, sampling_rate: float, leads: list[str]) -> np.ndarray:
        """Returns (recordings, width) for (recordings, leads, samples) float32 in mV."""


def names_encoder(source: str) -> bool:
    """Returns whether a name is MODULE:CLASS or FILE.py:CLASS, and not a model's."""
    return _NAME.fullmatch(source) is not None and not Path(source).exists()


def check_encoder(source: str):
    """Looks for the file or module of an encoder without importing any; of PACKAGE.MODULE for the package.

    Raises:
        ValueError: naming what is not there.
    """
    name = _NAME.fullmatch(source)["module"]
    if name.endswith(".py"):
        if not Path(name).resolve().is_file():
            raise ValueError(f"{source}: there is no file {name}.")
        return
    package = name.partition(".")[0]
    if not package or (package not in sys.modules and importlib.util.find_spec(package) is None):
        raise ValueError(_no_module(source, package))


def _no_module(source: str, name: str) -> str:
    return f"{source}: there is no module {name}; FILE.py:CLASS names a file."


class ExternalEncoder:
    """An encoder by its name, and its embeddings of stored rows."""

    def __init__(self, source: str, encoder: Encoder):
        self.source, self.encoder = source, encoder
        self.fingerprint = getattr(encoder, "fingerprint", None)

    def embed(self, rows: list[dict], transform=None) -> np.ndarray:
        """Returns (rows, width) float32; rows of the same leads and length are encoded together.

        Args:
            rows: of a prepared split.
            transform: a `melp.evaluation.encoding.SignalTransform` to apply first.

        Raises:
            ValueError: where the encoder gives anything but a row of finite numbers per recording.
        """
        from melp.data.stored import STORED_RATE

        alike: dict[tuple, list[int]] = {}
        for index, row in enumerate(rows):
            alike.setdefault((tuple(row["leads"]), len(row["signal"])), []).append(index)
        parts: list[np.ndarray | None] = [None] * len(rows)
        for (leads, _), indices in alike.items():
            signals = np.stack([_millivolts(rows[index]) for index in indices])
            records = [rows[index]["record"] for index in indices]
            if transform is not None:
                signals, _ = transform.apply(signals, np.ones(signals.shape[:2], dtype=bool), records)
            embeddings = np.asarray(self.encoder.encode(signals, float(STORED_RATE), list(leads)), dtype=np.float32)
            self._check(embeddings, records)
            for index, embedding in zip(indices, embeddings, strict=True):
                parts[index] = embedding
        if len({len(part) for part in parts}) > 1:
            raise ValueError(f"{self.source} gives embeddings of different widths.")
        return np.stack(parts)

    def _check(self, embeddings: np.ndarray, records: list[str]):
        if embeddings.ndim != 2 or len(embeddings) != len(records):
            raise ValueError(
                f"{self.source} gives an array of shape {embeddings.shape} for {len(records)} recordings: encode must "
                "return (recordings, width)."
            )
        wrong = ~np.isfinite(embeddings).all(axis=1)
        if wrong.any():
            raise ValueError(
                f"{self.source} gives embeddings that are not finite ({records[int(wrong.argmax())]} ...)."
            )


def _millivolts(row: dict) -> np.ndarray:
    stored = np.frombuffer(row["signal"], dtype="<i2").reshape(len(row["leads"]), -1)
    gain, baseline = (np.asarray(row[name], dtype=np.float32)[:, None] for name in ("gain", "baseline"))
    return (stored - baseline) / gain


def load_encoder(source: str) -> ExternalEncoder:
    """Imports and makes the encoder that MODULE:CLASS or FILE.py:CLASS names.

    Raises:
        ValueError: naming a module or class that is not there, or an object without `encode`.
    """
    parts = _NAME.fullmatch(source)
    module = _import(parts["module"], source)
    factory = getattr(module, parts["object"], None)
    if not callable(factory):
        raise ValueError(f"{source}: {parts['module']} has no class {parts['object']}.")
    encoder = factory()
    if not callable(getattr(encoder, "encode", None)):
        raise ValueError(f"{source} has no method encode(signals_mV, sampling_rate, leads).")
    return ExternalEncoder(source, encoder)


def encoder_file(source: str) -> Path | None:
    """Returns the file of an encoder's code; None for one that is not written in Python."""
    parts = _NAME.fullmatch(source)
    file = getattr(_import(parts["module"], source), "__file__", None)
    return Path(file) if file else None


def _import(name: str, source: str):
    check_encoder(source)
    if not name.endswith(".py"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ValueError(_no_module(source, error.name)) from error
    path = Path(name).resolve()
    known = f"melp_encoders_{path.stem}_{abs(hash(path))}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, path)
        sys.modules[known] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[known])
    return sys.modules[known]
