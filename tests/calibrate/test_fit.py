"""A calibration is tuned on a few labels where they are enough; what they say nothing of stays as it was."""

import json

import numpy as np
import pytest

from melp.calibrate.__main__ import main
from melp.calibrate.fit import tune


def test_what_the_adaptation_does_not_label_is_named(evaluated, knowing, model, capsys):
    knowing(evaluated)
    data = str(evaluated / "data")
    main([str(model), "--data", data, "--split", "train"])
    file = model / "findings.json"
    content = json.loads(file.read_text())
    first = next(iter(content["findings"]))
    content["findings"]["a finding of elsewhere"] = content["findings"][first] | {"label_set": "x", "labels": ["y"]}
    file.write_text(json.dumps(content))
    main([str(model), "--data", data, "--split", "test", "--adapt"])
    adapted = json.loads(file.read_text())
    assert "stay as they were: a finding of elsewhere" in capsys.readouterr().out
    assert adapted["findings"]["a finding of elsewhere"] == content["findings"]["a finding of elsewhere"]
    assert first in adapted["adapted"]["findings"] and adapted["adapted"]["passport"] == []


def test_limits_are_taken_anew_where_labels_are_enough():
    entry = {"slope": 40.0, "intercept": -12.0, "coverage": 0.9, "absent_below": 0.2, "present_above": 0.8}
    entry["thresholds"] = {"f1": 0.5}
    generator = np.random.default_rng(0)
    targets = np.array([1.0] * 5 + [0.0] * 60)
    similarities = np.r_[np.full(5, 0.5), 0.2 + 0.02 * generator.normal(size=60)]
    few = tune(entry, targets, similarities, np.arange(65), 0.9)
    curve = lambda s, e: 1 / (1 + np.exp(-e["slope"] * s - e["intercept"]))  # noqa: E731
    carried = (np.log(0.2 / 0.8) + 12) / 40
    assert few["absent_below"] == pytest.approx(curve(carried, few)), "5 with it are too few: the old limit stays"
    assert few["local"] == {"positives": 5, "negatives": 60}
    targets, similarities = np.r_[np.ones(20), np.zeros(60)], np.r_[np.full(20, 0.25), np.full(60, 0.2)]
    more = tune(entry, targets, similarities, np.arange(80), 0.9)
    assert more["absent_below"] == pytest.approx(min(0.5, curve(0.25, more)))
    assert tune(entry, np.full(3, np.nan), np.zeros(3), np.arange(3), 0.9) == entry
