"""Limits of a request to the app, and errors that a visitor may read."""

import logging
import traceback
from dataclasses import dataclass, fields
from pathlib import Path

from melp.predict.reasons import hide_quotations

LOG = logging.getLogger("melp.app")
MB = 2**20
UNEXPECTED = "something went wrong here; the log says where, not with what."


@dataclass(frozen=True)
class Limits:
    """Holds the limits of one request; app.py has an option for each.

    Attributes:
        file_mb: of one uploaded file.
        upload_mb: of all files that are uploaded at once.
        files: that are uploaded at once, or are in a zip file.
        unpacked_mb: of all that a zip file holds.
        seconds: that reading one recording may take.
        batch_seconds: that a batch may take.
        memory_mb: that reading may take.
        queue: requests that wait; more are refused.
        keep_minutes: how long a recording can be asked about after its last use, and a download be fetched.
    """

    file_mb: float = 100
    upload_mb: float = 500
    files: int = 500
    unpacked_mb: float = 1000
    seconds: float = 20
    batch_seconds: float = 1800
    memory_mb: float = 1500
    queue: int = 64
    keep_minutes: float = 30

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"--{field.name.replace('_', '-')} must be above 0, not {value}.")


class Refusal(ValueError):
    """Says why something is not done; its text is for the visitor and quotes nothing from inside a file."""


def explained(error: Exception) -> str:
    """Returns what a visitor is told of an error; the log has the place of an unexpected one, nothing of a file."""
    if isinstance(error, Refusal):
        return str(error)
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    LOG.error("%s at %s", type(error).__name__, " < ".join(reversed(places[-4:])))
    return UNEXPECTED


def without_quotations(error: str) -> str:
    """Returns a reader's error for a visitor, who has no command line: `hide_quotations`, and no option of one."""
    reason, mark, remedy = hide_quotations(error).rpartition("; ")
    return f"{reason}{mark}{'take a shorter part of it' if '--start' in remedy else remedy}"
