"""Recordings that can still be asked about: in memory, so many and for so long, each visitor's own."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from signal_melp import EcgBlock

MOST = 200  # recordings of all visitors: 0.5 MB each
MOST_OF_ONE = 40


@dataclass
class Recording:
    """One recording that was read.

    Attributes:
        name: that of its file.
        values, lead_mask: (1, leads, samples) float32 and (1, leads) bool, the model's inputs.
        block: the same ten seconds in mV.
        row: what was predicted of it, see `melp.predict.predictor`.
        identifiers: what may identify the patient, shown only when asked for.
        simulated: whether it is one of the examples.
    """

    name: str
    values: np.ndarray
    lead_mask: np.ndarray
    block: EcgBlock
    row: dict
    identifiers: dict[str, str] = field(default_factory=dict)
    simulated: bool = False


class Kept:
    """The recordings of every visitor (by session), the least recently used ones dropped first."""

    def __init__(self, minutes: float):
        self._seconds = minutes * 60
        self._sessions: OrderedDict[str, tuple[float, list[Recording]]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, session: str, recordings: list[Recording]):
        """Keeps these recordings of a session, instead of those before."""
        with self._lock:
            self._sessions[session] = (time.monotonic(), recordings[:MOST_OF_ONE])
            self._sessions.move_to_end(session)
            self._drop()

    def get(self, session: str) -> list[Recording]:
        with self._lock:
            self._drop()
            if session not in self._sessions:
                return []
            recordings = self._sessions[session][1]
            self._sessions[session] = (time.monotonic(), recordings)
            self._sessions.move_to_end(session)
            return recordings

    def forget(self, session: str):
        with self._lock:
            for name in [name for name in self._sessions if name.partition("/")[0] == session]:
                del self._sessions[name]

    def __len__(self) -> int:
        return sum(len(recordings) for _, recordings in self._sessions.values())

    def _drop(self):
        now = time.monotonic()
        while self._sessions:
            oldest, (used, _) = next(iter(self._sessions.items()))
            if now - used < self._seconds and (len(self) <= MOST or len(self._sessions) == 1):
                return
            del self._sessions[oldest]
