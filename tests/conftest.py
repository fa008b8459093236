"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def ecg_data() -> Path:
    """The folder of real sample recordings; tests that need it are marked `real_data` and skipped without it."""
    folder = Path(os.environ.get("MELP_ECG_DATA", REPO.parent / "shared" / "ecg"))
    if not folder.is_dir():
        pytest.skip(f"no sample recordings at {folder}; set MELP_ECG_DATA to their folder")
    return folder
