"""Recordings that can still be asked about: in memory, so many and for so long, each visitor's own."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from signal_melp import EcgBlock

MOST = 200  # recordings of all visitors: 0.5 MB each
MOST_OF_ONE = 40
MOST_HITS = 12_000  # of all visitors: some hundred bytes each
Entry = TypeVar("Entry")


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


class Kept(Generic[Entry]):
    """The recordings or hits of every visitor (by session), the least recently used ones dropped first."""

    def __init__(self, minutes: float, most: int = MOST):
        self._seconds, self._most = minutes * 60, most
        self._sessions: OrderedDict[str, tuple[float, list[Entry]]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, session: str, entries: list[Entry]):
        """Keeps these of a session, instead of those before."""
        with self._lock:
            self._sessions[session] = (time.monotonic(), entries[:MOST_OF_ONE])
            self._sessions.move_to_end(session)
            self._drop()

    def get(self, session: str) -> list[Entry]:
        with self._lock:
            self._drop()
            if session not in self._sessions:
                return []
            entries = self._sessions[session][1]
            self._sessions[session] = (time.monotonic(), entries)
            self._sessions.move_to_end(session)
            return entries

    def forget(self, session: str):
        with self._lock:
            for name in [name for name in self._sessions if name.partition("/")[0] == session]:
                del self._sessions[name]

    def expire(self):
        """Drops what was not used for its time, when nobody asks for anything either."""
        with self._lock:
            self._drop()

    def __len__(self) -> int:
        return sum(len(entries) for _, entries in self._sessions.values())

    def _drop(self):
        now = time.monotonic()
        while self._sessions:
            oldest, (used, _) = next(iter(self._sessions.items()))
            if now - used < self._seconds and (len(self) <= self._most or len(self._sessions) == 1):
                return
            del self._sessions[oldest]
