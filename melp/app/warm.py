"""Imported once, by what reading processes are forked from: all that they would otherwise import at a first file."""

import contextlib
import importlib

import pyarrow as pa

import melp.app.reader  # noqa: F401

for name in ("h5py", "pyarrow.parquet", "pydicom", "scipy.signal", "soundfile"):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
pa.array([""])  # imports pandas where it is there
