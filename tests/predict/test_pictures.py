"""A picture of every window, with the ECG as the model had it, what was predicted, and no patient's name."""

import numpy as np
import pandas as pd
import pytest
from predicting import rows_of, run
from tiny import tiny_processor

from melp.notice import NOTICE
from melp.predict import reading as reading_module
from melp.predict.paths import list_recordings
from melp.predict.pictures import draw_prediction, header_columns
from signal_melp import LEADS


def test_pictures(models, ecgs, tmp_path):
    run(ecgs / "a", ecgs / "sub", "--model", models / "whole", "--output", tmp_path / "out", "--pictures", "svg")
    rows = rows_of(tmp_path / "out")
    for name in ("a", "named.edf"):
        sheet = (tmp_path / "out" / rows.loc[name, "picture"]).read_text()
        assert NOTICE in sheet and "<svg" in sheet and "Doe" not in sheet and "P123" not in sheet


@pytest.mark.parametrize("seconds, count, absent", [(10, 12, 0), (2.5, 12, 0), (10, 8, 4)])
def test_a_print_is_drawn_as_the_model_has_it(tmp_path, seconds, count, absent):
    """Each lead for its 2.5 s, without a strip that is not on it, or leads that the model did not derive."""
    leads = list(LEADS if count == 12 else ("I", "II", *LEADS[6:]))
    signal = np.random.default_rng(0).standard_normal((count, round(500 * seconds))).astype(np.float32)
    np.savez(tmp_path / "a.npz", signal=signal, leads=leads, sampling_rate=500, unit="mV")
    listed, extractor = list_recordings([str(tmp_path)]), tiny_processor().feature_extractor
    reading = reading_module.Reading(layout="3x4")
    item = reading_module.Recordings(listed, extractor, reading, keep_block=True)[0]
    axes = draw_prediction(item.block, item.quality | {"start": 0.0}, None).axes[0]
    labels = [text.get_text() for text in axes.texts]
    assert sorted(label for label in labels if label in LEADS) == sorted(leads)
    assert sum(label.endswith("(absent)") for label in labels) == absent
    assert not any(label.endswith("(derived)") for label in labels)
    traces = [line for line in axes.lines if np.isfinite(line.get_ydata()).sum() > 1000]
    assert [len(line.get_xdata()) for line in traces] == [pytest.approx(1250, abs=1)] * count


def test_a_sheet_says_what_is_no_probability():
    row = {"findings": ["AF"], "similarities": [0.41], "probabilities": [None], "verdicts": [None]}
    row |= {"warnings": [], "done": []}
    assert header_columns(row, None)[0] == [
        "0.410  AF",
        "(not calibrated for such recordings: similarities, not probabilities)",
    ]
    assert header_columns(row, "not calibrated")[0][1] == "(not calibrated)"
    assert header_columns(row | {"probabilities": [0.9]}, None)[0] == ["90%  AF"]


@pytest.mark.slow
def test_every_window_has_a_picture(models, ecgs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reading_module, "PAGES", 2)
    for form in ("svg", "pdf"):
        out = tmp_path / form
        run(
            ecgs / "long", ecgs / "a", "--model", models / "tower", "--stride", 10, "--pictures", form, "--output", out
        )
        assert "1 later ones have none" in capsys.readouterr().out
        rows = rows_of(out)
        assert pd.isna(rows.loc["long", "picture"].iloc[2])
        assert len(list((out / "pictures").iterdir())) == {"svg": 3, "pdf": 2}[form]
    assert [name.rpartition("#")[2] for name in rows.loc["long", "picture"].tolist()[:2]] == ["page=1", "page=2"]
    sheet = (tmp_path / "pdf" / rows.loc["long", "picture"].iloc[1].partition("#")[0]).read_bytes()
    assert sheet.count(b"/Type /Page\n") + sheet.count(b"/Type /Page ") == 2
    svg = rows_of(tmp_path / "svg").loc["long", "picture"].tolist()
    assert svg[0].endswith("-0001.svg") and svg[1].endswith("-0002.svg")
