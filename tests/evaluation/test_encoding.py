"""Embeddings of recordings, kept from run to run."""

import os

import numpy as np
import pytest
import torch
from tiny import tiny_model

from melp.data.prepared import load_prepared
from melp.evaluation.encoding import CPSC_ORIGINAL, SignalTransform, _warn_of_cache, encode
from melp.evaluation.models import Runtime, load_model

CPU = Runtime(torch.device("cpu"))


def test_cached_features_are_the_encoder_s_and_belong_to_model_and_recordings(evaluated, tmp_path):
    model, processor = load_model(str(evaluated / "model"), CPU.device)
    splits = load_prepared(evaluated / "data")
    runtime = Runtime(CPU.device, cache=tmp_path)
    for rows in (splits["test"], splits["validation"].select(range(len(splits["validation"])))):
        plain = encode(model, processor, rows, CPU)
        np.testing.assert_array_equal(encode(model, processor, rows, runtime)["probe"], plain["probe"])
        np.testing.assert_array_equal(encode(model, processor, rows, runtime)["probe"], plain["probe"])
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    changed = encode(model, processor, splits["test"], runtime, transform=CPSC_ORIGINAL)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert not np.allclose(changed["probe"], encode(model, processor, splits["test"], runtime)["probe"])
    other = tiny_model(seed=3)
    other.fingerprint = "other"
    fresh = encode(other, processor, splits["test"], runtime)["probe"]
    np.testing.assert_array_equal(fresh, encode(other, processor, splits["test"], CPU)["probe"])


def test_embeddings_that_are_not_finite_name_the_recordings(evaluated):
    model, processor = load_model(str(evaluated / "model"), CPU.device)
    rows = load_prepared(evaluated / "data")["test"]
    broken = SignalTransform("broken", lambda signal, mask, records: (signal * np.float32(np.nan), mask))
    with pytest.raises(ValueError, match=rows["record"][0]):
        encode(model, processor, rows, CPU, transform=broken)


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "folder"])
def test_a_damaged_cache_counts_as_absent(evaluated, tmp_path, damage):
    model, processor = load_model(str(evaluated / "model"), CPU.device)
    rows, runtime = load_prepared(evaluated / "rhythm")["test"], Runtime(CPU.device, cache=tmp_path)
    first = encode(model, processor, rows, runtime)
    (file,) = tmp_path.glob("*.safetensors")
    content = file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o666 & ~_umask()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    else:
        other = encode(model, processor, rows.select([0]), Runtime(CPU.device, cache=tmp_path / "other")) and next(
            (tmp_path / "other").glob("*.safetensors")
        )
        file.write_bytes({"cut": content[:-100], "empty": b"", "other": other.read_bytes()}[damage])
    _warn_of_cache.cache_clear()
    if damage == "other":  # features of another number of rows
        again = encode(model, processor, rows, runtime)
    else:
        with pytest.warns(UserWarning, match="feature cache"):
            again = encode(model, processor, rows, runtime)
    np.testing.assert_array_equal(first["probe"], again["probe"])
    if damage != "folder":
        assert file.read_bytes() == content


def test_a_cache_that_cannot_be_written_is_one_warning(evaluated, tmp_path):
    model, processor = load_model(str(evaluated / "model"), CPU.device)
    rows = load_prepared(evaluated / "rhythm")["test"]
    (tmp_path / "file").touch()
    _warn_of_cache.cache_clear()
    with pytest.warns(UserWarning, match="nothing is kept there") as warned:
        for part in (rows, rows.select([0])):
            encode(model, processor, part, Runtime(CPU.device, cache=tmp_path / "file"))
    assert len([one for one in warned if "feature cache" in str(one.message)]) == 1


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
