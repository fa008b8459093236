"""Copies of one tracing are found: equal, shifted, rescaled, resampled; other recordings are not taken for them."""

import numpy as np
import pandas as pd
import pytest
from datasets import DatasetDict, load_from_disk

from melp.data.prepared import load_prepared
from melp.data.stored import signal_hash
from melp.duplicates.search import find_equal, find_near, load_recordings
from melp.prepare.folder import prepare
from signal_melp import resample_ecg

CHANGES = {
    "scaled": lambda mv: 0.7 * mv,
    "offset": lambda mv: mv + np.arange(12)[:, None],
    "shifted": lambda mv: mv[:, 687:],
    "cut": lambda mv: mv[:, :-1500],
    "resampled": lambda mv: resample_ecg(resample_ecg(mv, 500, 257), 257, 500),
    "all": lambda mv: 1.3 * resample_ecg(resample_ecg(mv, 500, 100), 100, 500)[:, 501:],
    "six leads": lambda mv: mv[:6],
}


@pytest.fixture(scope="module")
def changed(corpus, tmp_path_factory):
    """The training rows, each changed in one of several ways, under other names."""
    ways = list(CHANGES)

    def change(row, index):
        stored = np.frombuffer(row["signal"], "<i2").reshape(12, -1)
        mv = (CHANGES[ways[index % len(ways)]](stored / 1000.0)).astype(np.float32)
        signal = np.rint(mv * 400).astype("<i2").tobytes()
        count = len(mv)
        return {
            "record": f"{ways[index % len(ways)]} {row['record']}",
            "signal": signal,
            "signal_hash": signal_hash(signal),
            "leads": row["leads"][:count],
            "gain": [400.0] * count,
            "baseline": [0.0] * count,
        }

    folder = tmp_path_factory.mktemp("duplicates") / "changed"
    rows = load_from_disk(str(corpus))["train"].map(change, with_indices=True)
    DatasetDict({"test": rows}).save_to_disk(str(folder))
    return folder


def test_near_copies_are_found_and_nothing_else(corpus, changed):
    recordings = load_recordings([str(corpus), str(changed)])
    assert find_equal(recordings) == []
    pairs = {(pair.one.record, pair.other.record): pair for pair in find_near(recordings)}
    names = load_prepared(changed)["test"]["record"][:]
    expected = {(name.split(" ")[-1], name) for name in names}
    assert set(pairs) <= expected, "a recording was taken for another"
    missed = sorted(name for _, name in expected - set(pairs))
    assert len(missed) <= 0.05 * len(expected), missed
    for (_, name), pair in pairs.items():
        shift = {"shifted": 687 / 500, "all": 501 / 500}.get(name.split(" ")[0], 0.0)
        assert pair.kind == "near" and pair.across == "folders" and pair.correlation > 0.97
        assert pair.shift == pytest.approx(shift, abs=0.01)


def test_flat_and_featureless_recordings_are_no_pairs(corpus, tmp_path):
    splits = load_from_disk(str(corpus))
    rng = np.random.default_rng(0)

    def change(row, index):
        signal = rng.normal(0, 100, (12, 5000)) if index > 5 else np.zeros((12, 5000))
        signal[0, 0] = index
        signal = signal.astype("<i2").tobytes()
        return {"signal": signal, "signal_hash": signal_hash(signal)}

    rows = splits["train"].select(range(12)).map(change, with_indices=True)
    DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "flat"))
    assert find_near(load_recordings([str(tmp_path / "flat")])) == []


@pytest.mark.real_data
def test_real_duplicates_of_public_databases_are_found(ecg_data, tmp_path):
    """The Ningbo recordings are in the Challenge's folders and in Chapman-Shaoxing-Ningbo; Georgia has one twice."""
    prepare("challenge", tmp_path / "challenge", root=ecg_data / "cinc2021")
    prepare("csn", tmp_path / "csn", root=ecg_data / "chapman")
    pairs = find_equal(load_recordings([str(tmp_path / "challenge"), str(tmp_path / "csn")]))
    assert sum(pair.across == "folders" for pair in pairs) == 20
    copies = pd.read_csv(tmp_path / "challenge" / "copies.csv")
    assert copies["record"].tolist() == ["E07509", "E07510"] and copies["split"].nunique() == 1
