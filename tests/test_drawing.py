"""Sheets measure what a ruler should read off them, and show what is there."""

import io
import itertools

import numpy as np
import pytest

from melp.drawing import COLOURS, INCH, LAYOUTS, Tint, draw_sheet, draw_strips, lay_out
from melp.notice import NOTICE
from signal_melp import LEADS, printed_mask


def ecg(rate: float = 500.0, seconds: float = 10.0) -> np.ndarray:
    """A step of 1 mV from 2 s to 2.2 s in each lead, over an offset that differs."""
    signal = np.zeros((12, round(seconds * rate)), dtype=np.float32)
    signal[:, round(2 * rate) : round(2.2 * rate)] = 1.0
    return signal + np.arange(12, dtype=np.float32)[:, None]


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("layout, rows", [("3x4", 4), ("6x2", 7), ("12x1", 12), ("II,V1", 2)])
def test_layouts_cover_ten_seconds_in_millimetres(layout, rows):
    panels, width, height = lay_out(layout, LEADS)
    assert len(panels) == rows
    for row in panels:
        assert row[0].start == 0 and row[-1].stop == 10
        assert all(a.stop == b.start and a.x(a.stop) == b.left for a, b in itertools.pairwise(row))
        assert float(row[-1].x(10.0) - row[0].x(0.0)) == 250.0 and row[-1].x(10.0) < width
        assert row[0].baseline % 5 == 0 and 0 < row[0].y(-1) < row[0].y(1) < height
    if layout in LAYOUTS:
        assert {panel.lead for row in panels for panel in row} == set(LEADS)


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="V9"):
        lay_out("II,V9", LEADS)


def test_a_sheet_is_drawn_to_scale_about_each_leads_median():
    figure = draw_sheet(ecg(), LEADS, 500.0, "12x1", title="record")
    panels, width, _ = lay_out("12x1", LEADS)
    assert figure.get_size_inches()[0] * INCH == pytest.approx(width)
    traces = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 5000]
    assert len(traces) == 12
    for (panel,), trace in zip(panels, traces, strict=True):
        height = trace.get_ydata() - panel.baseline
        assert height.min() == pytest.approx(0.0, abs=1e-4) and height.max() == pytest.approx(10.0, abs=1e-4)
        raised = trace.get_xdata()[height > 5]
        assert raised[0] - panel.left == pytest.approx(50.0) and raised[-1] - raised[0] == pytest.approx(5.0, abs=0.1)


def test_absent_and_derived_leads_are_named():
    kept = [lead for lead in LEADS if lead != "V3"]
    figure = draw_sheet(ecg()[:11], kept, 500.0, derived=["aVR"], columns=(["finding"], ["draft"]))
    shown = texts(figure)
    assert {"V3 (absent)", "aVR (derived)", "finding", "draft", NOTICE} <= set(shown) and "V3" not in shown
    assert any("25 mm/s" in text and "10 mm/mV" in text for text in shown)


@pytest.mark.parametrize("form, magic", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_short_record_with_gaps_is_saved_in_every_form(form, magic):
    signal = ecg(250.0, 4.0)
    signal[0], signal[3, 100:200] = np.nan, np.nan
    file = io.BytesIO()
    draw_sheet(signal, LEADS, 250.0, "6x2").savefig(file, format=form)
    assert file.getvalue().startswith(magic)


def test_several_recordings_share_a_sheet():
    hit = {"signal": ecg(), "leads": LEADS, "sampling_rate": 500.0}
    figure = draw_strips([{**hit, "title": "a"}, {**hit, "title": "b"}], title="query")
    assert {"query", "a", "b", NOTICE} <= set(texts(figure)) and texts(figure).count("V1") == 2
    assert len([line for line in figure.axes[0].lines if len(line.get_xdata()) == 5000]) == 6


def tinted(figure) -> dict[str, np.ndarray]:
    """Of each colour of `COLOURS` the x, in mm from the start of the traces, that its lines cover."""
    drawn = {}
    for line in figure.axes[0].lines:
        drawn.setdefault(line.get_color(), []).append(line.get_xdata())
    return {colour: np.concatenate(parts) for colour, parts in drawn.items()}


def test_tints_colour_the_traces_of_their_leads_and_times():
    one = Tint(COLOURS[0], [(2.0, 3.0)], ["V1"], "first", "its note")
    figure = draw_sheet(ecg(), LEADS, 500.0, "12x1", tints=[one])
    left = lay_out("12x1", LEADS)[0][0][0].left
    covered = tinted(figure)[COLOURS[0]] - left
    assert covered.min() == pytest.approx(50.0, abs=0.1) and covered.max() == pytest.approx(75.0, abs=0.1)
    assert {"first", "its note"} <= set(texts(figure)) and any("coloured" in text for text in texts(figure))
    nowhere = draw_sheet(ecg(), LEADS, 500.0, "3x4", tints=[one])  # there V1 is shown from 5 to 7.5 s
    assert COLOURS[0] not in tinted(nowhere)


def test_where_tints_meet_their_colours_take_turns_and_an_unsure_one_is_paler():
    one, other = (Tint(colour, [(1.0, 4.0)], ["II"], colour) for colour in COLOURS[:2])
    shared = tinted(draw_sheet(ecg(), LEADS, 500.0, "12x1", tints=[one, other]))
    assert len(shared[COLOURS[0]]) == pytest.approx(len(shared[COLOURS[1]]), rel=0.1)
    unsure = tinted(
        draw_sheet(ecg(), LEADS, 500.0, "12x1", tints=[Tint(COLOURS[0], [(1, 2)], ["II"], "", sure=False)])
    )
    assert COLOURS[0] not in unsure and "#80b8d8" in unsure


def test_baselines_stay_on_thick_lines_below_tints():
    figure = draw_sheet(ecg(), LEADS, 500.0, "3x4", tints=[Tint(COLOURS[0], [(1, 2)], ["II"], "a")] * 4)
    traces = [line.get_ydata() for line in figure.axes[0].lines if len(line.get_xdata()) >= 1250]
    assert all(np.median(trace) % 5 == pytest.approx(0.0, abs=1e-3) for trace in traces)


@pytest.mark.parametrize("strip", [(), ("II",), ("V1",)])
def test_the_rhythm_strip_is_of_a_lead_that_is_there_throughout(strip):
    figure = draw_sheet(np.where(printed_mask(LEADS, 5000, strip), ecg(), np.nan), LEADS, 500.0)
    labels = [text for text in texts(figure) if text in LEADS]
    assert sorted(labels) == sorted([*LEADS, *strip])
    shown = [line for line in figure.axes[0].lines if np.isfinite(line.get_ydata()).sum() > 1000]
    assert len(shown) == len(labels)


def test_words_of_others_are_no_formula():
    words = "a$x^$b"
    tint = Tint(COLOURS[0], [(1, 2)], ["II"], words, words)
    hit = {"signal": ecg(), "leads": LEADS, "sampling_rate": 500.0, "title": words}
    sheets = [
        draw_sheet(ecg(), LEADS, 500.0, title=words, columns=([words], [words]), tints=[tint]),
        draw_strips([hit], title=words),
    ]
    for sheet, count in zip(sheets, (5, 2), strict=True):
        assert texts(sheet).count(words) == count
        sheet.savefig(io.BytesIO(), format="svg")
