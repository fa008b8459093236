"""Identification: pairs that are drawn, and the published ones."""

import numpy as np
import pandas as pd
import pytest
from evaluating import run

from melp.data.prepared import load_prepared
from melp.evaluation.tasks import identify


def test_patients_are_identified_by_their_other_recordings(evaluated, tmp_path):
    results, predictions = run(evaluated, tmp_path, "identify", "--split", "train")
    assert results["patients"] == len(predictions) == predictions["patient"].nunique() > 5
    for row in predictions.itertuples():  # a patient's two different recordings
        assert (
            row.record != row.gallery_record and row.record.rsplit("-", 1)[0] == row.gallery_record.rsplit("-", 1)[0]
        )
    assert results["metrics"]["recall_1"]["value"] == (predictions["score"] == 1).mean()
    features = np.random.default_rng(1).normal(size=(6, 4))
    assert (identify.identification(features, 3 * features).ranks == 1).all()


def test_published_pairs_are_found_by_file_name_and_read_to_their_length(evaluated, tmp_path):
    records = list(load_prepared(evaluated / "data")["train"]["record"][:4])
    files = {"gallery": records[:2], "probe": records[2:]}

    def table(name, **columns):
        named = {"filename_hr": [f"records500/{record}_hr" for record in files[name]] + ["a_hr"]}
        pd.DataFrame(named | columns | {"label": [0, 1, 2]}).to_csv(tmp_path / f"valid_{name}.csv", index=False)

    for name in files:
        table(name, length=2500)
    _, predictions = run(evaluated, tmp_path, "identify", "--splits", str(tmp_path))
    assert predictions["record"].tolist() == records[2:] and predictions["gallery_record"].tolist() == records[:2]
    splits = load_prepared(evaluated / "data")
    table("gallery", length=[2500, 1000, 2500])
    gallery, _, pairs, change = identify.published_pairs(splits, str(tmp_path), "data")
    signal, _ = change.apply(np.ones((2, 12, 5000)), np.ones((2, 12), dtype=bool), list(gallery["record"]))
    assert pairs == 3 and signal.sum(axis=2)[:, 0].tolist() == [2500, 1000]
    table("probe")
    with pytest.raises(SystemExit, match="needs the columns filename_hr, length and label"):
        run(evaluated, tmp_path, "identify", "--splits", str(tmp_path))
    (tmp_path / "valid_probe.csv").unlink()
    with pytest.raises(SystemExit, match="no valid_probe.csv"):
        run(evaluated, tmp_path, "identify", "--splits", str(tmp_path))
