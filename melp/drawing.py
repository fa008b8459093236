"""Draws ECGs as clinicians print them: 25 mm/s and 10 mm/mV on ruled paper, 3x4 with a rhythm strip, 6x2 or 12x1.

A sheet is laid out in millimetres and saved at its true size, so that a ruler on a print measures what it should.
`draw_sheet` does it all; what is to be added to a trace asks its `Panel` where a second and a millivolt are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from melp.notice import NOTICE
from signal_melp import PRINTED_COLUMNS, USUAL_LEADS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MM_PER_SECOND, MM_PER_MILLIVOLT = 25.0, 10.0
INCH = 25.4  # mm
# Rows of leads, each read from left to right; the columns of a row follow each other in time.
LAYOUTS = {
    "3x4": tuple(zip(*PRINTED_COLUMNS, strict=True)),
    "6x2": (("I", "V1"), ("II", "V2"), ("III", "V3"), ("aVR", "V4"), ("aVL", "V5"), ("aVF", "V6")),
    "12x1": tuple((lead,) for lead in USUAL_LEADS),
}
ROW_MM = {"3x4": 30.0, "6x2": 20.0, "12x1": 15.0}  # multiples of 5: every baseline lies on a thick line
RHYTHM_LEADS = ("II", "V1", "V5", "I")  # the first of these that is there is the rhythm strip
SECONDS = 10.0
LEFT, RIGHT, TOP, FOOT = 16.0, 8.0, 5.0, 10.0  # margins in mm; the left one holds the calibration pulse
PULSE = (5.0, 10.0)  # mm: 0.2 s and 1 mV
LINE, TITLE = 4.2, 6.0  # heights of text lines in mm
MINOR, MAJOR, TRACE = "#f7d6d3", "#eba6a0", "#101010"
POINTS = 72 / INCH  # per mm
# Told apart by colour-blind readers too (Okabe and Ito), and dark enough on ruled paper, which is red.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#6b4c00")
PALE = 0.5  # how much white a tint that is not sure has
DASH = 1.5  # mm: where tints share a trace, their colours take turns
FREE = {"va": "center", "parse_math": False}  # words of others: what two $ enclose is no formula
BAR, BARS_GAP = 1.6, 0.7  # mm: height of a bar below the traces, and between two


@dataclass(frozen=True)
class Panel:
    """A stretch of one lead on a sheet.

    Attributes:
        lead: its name.
        left, baseline: mm from the left and the bottom of the sheet: of its first sample, and of 0 mV.
        start, stop: seconds of the recording.
    """

    lead: str
    left: float
    baseline: float
    start: float
    stop: float

    def x(self, seconds):
        """Returns where a time is, in mm."""
        return self.left + (np.asarray(seconds) - self.start) * MM_PER_SECOND

    def y(self, millivolts):
        """Returns where a voltage is, in mm."""
        return self.baseline + np.asarray(millivolts) * MM_PER_MILLIVOLT


@dataclass(frozen=True)
class Tint:
    """Parts of the traces in a colour of their own, with an entry in the legend.

    Attributes:
        spans: (start, stop) in seconds from the first sample; leads: whose traces are tinted there.
        title, note: lines of the legend.
        sure: false for what is to be drawn paler, its bars hollow.
    """

    colour: str
    spans: Sequence[tuple[float, float]]
    leads: Sequence[str]
    title: str
    note: str = ""
    sure: bool = True


def lay_out(layout: str, leads: Sequence[str], seconds: float = SECONDS) -> tuple[list[list[Panel]], float, float]:
    """Returns the rows of panels of a layout, and width and height in mm of the ruled part below the header.

    Args:
        layout: a name in `LAYOUTS`, or leads with commas between them, one row per lead ("II,V1,V5").
        leads: those that the recording has; a panel of another stays empty.
        seconds: what a row shows.

    Raises:
        ValueError: for an unknown layout.
    """
    rows = LAYOUTS.get(layout) or tuple((lead.strip(),) for lead in layout.split(","))
    if unknown := [lead for row in rows for lead in row if lead not in {x for r in LAYOUTS["12x1"] for x in r}]:
        raise ValueError(f"layout {layout!r}: {unknown[0]!r} is no lead; take {', '.join(LAYOUTS)}, or leads.")
    if layout in ("3x4", "6x2"):
        rhythm = next((lead for lead in RHYTHM_LEADS if lead in leads), None)
        rows += ((rhythm,),) if rhythm else ()
    height = ROW_MM.get(layout, 20.0)
    total = TOP + height * len(rows) + FOOT
    panels = []
    for number, row in enumerate(rows):
        baseline = total - TOP - height * number - 5.0 * round(0.55 * height / 5.0)
        part = seconds / len(row)
        panels.append(
            [
                Panel(lead, LEFT + column * part * MM_PER_SECOND, baseline, column * part, (column + 1) * part)
                for column, lead in enumerate(row)
            ]
        )
    return panels, LEFT + seconds * MM_PER_SECOND + RIGHT, total


def draw_sheet(
    signal: np.ndarray,
    leads: Sequence[str],
    sampling_rate: float,
    layout: str = "3x4",
    title: str = "",
    columns: tuple[Sequence[str], Sequence[str]] = ((), ()),
    derived: Sequence[str] = (),
    start: float = 0.0,
    tints: Sequence[Tint] = (),
) -> "Figure":
    """Draws one recording.

    Each lead is drawn about its median, as electrocardiographs, which do not transmit direct current, draw it; nothing
    else is filtered.

    Args:
        signal: (leads, samples) in mV; NaN leaves a gap.
        leads: its rows.
        title, columns: of the header; lines of text, left and right.
        derived: leads that were computed from others, which their labels say.
        start: seconds of the recording at which `signal` begins.
        tints: parts of the traces to be coloured, with a legend above and bars below that say when.

    Returns:
        a matplotlib figure of one axes, in mm; `figure.savefig("ecg.png" | ".svg" | ".pdf")` has the true size.

    Raises:
        ValueError: for an unknown layout.
    """
    # A rhythm strip is of a lead that is there throughout, which those of a print are not.
    whole = [lead for lead, row in zip(leads, signal, strict=True) if np.isfinite(row).mean() > 0.5]
    panels, width, ruled = lay_out(layout, whole)
    panels = [[replace(panel, baseline=panel.baseline + _bars_height(tints)) for panel in row] for row in panels]
    ruled += _bars_height(tints)
    header = TITLE + 2 * LINE + LINE * max(map(len, columns)) + _legend_height(tints)
    figure, axes = _new_sheet(width, ruled + header)
    _rule(axes, width, ruled)
    rows = {lead: _about_median(row) for lead, row in zip(leads, signal, strict=True)}
    for row in panels:
        _pulse(axes, row[0].baseline)
        for panel in row:
            _trace(axes, panel, rows.get(panel.lead), sampling_rate, panel.lead in derived, panel is not row[0])
            _tint(axes, panel, rows.get(panel.lead), sampling_rate, tints)
    _bars(axes, tints)
    _header(axes, width, ruled + header, title, columns)
    _legend(axes, ruled + _legend_height(tints), tints)
    shown = f"{start:g} to {start + min(SECONDS, signal.shape[-1] / sampling_rate):g} s"
    foot = f"{MM_PER_SECOND:g} mm/s   {MM_PER_MILLIVOLT:g} mm/mV   {shown}   {sampling_rate:g} Hz   unfiltered"
    if tints:
        foot += "   coloured: what carries a sentence, in its leads; bars: when; colours take turns where shared"
        foot += "   scores: similarities, no probabilities"
    axes.text(LEFT, 3.5, foot, fontsize=2.6 * POINTS, va="center")
    return figure


def draw_strips(hits: Sequence[Mapping], leads: Sequence[str] = ("II", "V1", "V5"), title: str = "") -> "Figure":
    """Draws several recordings below each other on one sheet, a strip per lead.

    Args:
        hits: dicts of `signal` (leads, samples) in mV, `leads`, `sampling_rate`, and `title`.
        leads: the strips of each; one that a recording lacks stays empty.
        title: of the sheet.
    """
    panels, width, ruled = lay_out(",".join(leads), leads)
    block = ruled + 10.0
    header = TITLE + 2 * LINE
    figure, axes = _new_sheet(width, block * len(hits) + header)
    _rule(axes, width, block * len(hits))
    for number, hit in enumerate(hits):
        bottom = block * (len(hits) - 1 - number)
        rows = {lead: _about_median(row) for lead, row in zip(hit["leads"], hit["signal"], strict=True)}
        axes.text(LEFT, bottom + ruled + 4.0, hit["title"], fontsize=3.2 * POINTS, weight="bold", **FREE)
        for (panel,) in panels:
            moved = Panel(panel.lead, panel.left, panel.baseline + bottom, panel.start, panel.stop)
            _pulse(axes, moved.baseline)
            _trace(axes, moved, rows.get(panel.lead), hit["sampling_rate"], False, False)
    foot = f"{MM_PER_SECOND:g} mm/s   {MM_PER_MILLIVOLT:g} mm/mV   unfiltered"
    axes.text(LEFT, 3.5, foot, fontsize=2.6 * POINTS, va="center")
    _header(axes, width, block * len(hits) + header, title)
    return figure


# -------------------------------------------------------------------------------------------------------------- parts


def _new_sheet(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / INCH, height / INCH), dpi=150)
    FigureCanvasAgg(figure)  # whatever backend a notebook has chosen
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    return figure, axes


def _rule(axes, width: float, height: float):
    """Rules the paper: thin lines every mm, thick ones every 5 mm, a thick one through the start of the traces."""
    from matplotlib.collections import LineCollection

    for step, colour, thickness in ((1.0, MINOR, 0.25), (5.0, MAJOR, 0.5)):
        across = np.arange(LEFT % step, width, step)
        up = np.arange(0.0, height + 1e-6, step)
        lines = [((x, 0), (x, height)) for x in across] + [((0, y), (width, y)) for y in up]
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=thickness, zorder=0))


def _pulse(axes, baseline: float):
    wide, high = PULSE
    left = LEFT - wide - 5.0
    xs = (left - 2.5, left, left, left + wide, left + wide, left + wide + 2.5)
    ys = (0, 0, high, high, 0, 0)
    axes.plot(xs, baseline + np.array(ys), color=TRACE, linewidth=0.7, solid_joinstyle="miter")


def _trace(axes, panel: Panel, row: np.ndarray | None, rate: float, is_derived: bool, divided: bool):
    if divided:  # a tick where one lead ends and the next begins
        axes.plot([panel.left] * 2, panel.baseline + np.array([-3.0, 3.0]), color=TRACE, linewidth=0.7)
    label = panel.lead + (" (absent)" if row is None else " (derived)" if is_derived else "")
    axes.text(
        panel.left + 1.0,
        panel.baseline + 8.0,
        label,
        fontsize=3.4 * POINTS,
        weight="bold",
        zorder=2,  # a trace that crosses a label stays whole
        bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.4},
    )
    if row is not None:
        first, last = round(panel.start * rate), min(round(panel.stop * rate) + 1, len(row))
        if first < last:
            seconds = np.arange(first, last) / rate
            axes.plot(panel.x(seconds), panel.y(row[first:last]), color=TRACE, linewidth=0.75, zorder=3)


def _tint(axes, panel: Panel, row: np.ndarray | None, rate: float, tints: Sequence[Tint]):
    """Draws the tinted parts of a trace over it; where several tints meet, dashes of their colours take turns."""
    tints = [tint for tint in tints if panel.lead in tint.leads]
    if row is None or not tints:
        return
    first, last = round(panel.start * rate), min(round(panel.stop * rate), len(row) - 1)
    samples = np.arange(first, last)
    if not len(samples):
        return
    seconds = samples / rate
    here = np.stack([_within(seconds, tint.spans) for tint in tints])  # (tints, samples)
    turn = (np.concatenate([[0.0], np.cumsum(np.hypot(*_steps(panel, row, first, last, rate)))])[:-1] / DASH).astype(
        int
    )
    # Which of the tints that are here has its turn.
    rank = np.where(here, np.cumsum(here, axis=0) - 1, -1)
    chosen = rank == turn % np.maximum(here.sum(axis=0), 1)
    for tint, mask in zip(tints, chosen & here, strict=True):
        for begin, end in _runs(mask):
            part = np.arange(first + begin, first + end + 1)
            axes.plot(
                panel.x(part / rate),
                panel.y(row[part]),
                color=tint.colour if tint.sure else _paler(tint.colour),
                linewidth=1.5,
                solid_capstyle="butt",
                zorder=4,
            )


def _paler(colour: str) -> str:
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(part + PALE * (255 - part)):02x}" for part in parts)


def _steps(panel: Panel, row: np.ndarray, first: int, last: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the millimetres that a trace goes to the right and up from sample to sample."""
    up = np.nan_to_num(np.diff(row[first : last + 1])) * MM_PER_MILLIVOLT
    return np.full(len(up), MM_PER_SECOND / rate), up


def _within(seconds: np.ndarray, spans: Sequence[tuple[float, float]]) -> np.ndarray:
    inside = np.zeros(len(seconds), dtype=bool)
    for start, stop in spans:
        inside |= (seconds >= start) & (seconds < stop)
    return inside


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Returns (first, behind last) of every run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]


def _bars_height(tints: Sequence[Tint]) -> float:
    """Returns a multiple of 5 mm, so that baselines stay on thick lines."""
    return 5.0 * -(-len(tints) * (BAR + BARS_GAP) // 5.0)


def _bars(axes, tints: Sequence[Tint]):
    """Draws a row of bars per tint below the traces: when."""
    from matplotlib.patches import Rectangle

    for number, tint in enumerate(tints):
        bottom = FOOT - 3.0 + _bars_height(tints) - (number + 1) * (BAR + BARS_GAP)
        axes.text(LEFT - 2.0, bottom + BAR / 2, str(number + 1), fontsize=2.2 * POINTS, ha="right", va="center")
        for start, stop in tint.spans:
            left, wide = LEFT + start * MM_PER_SECOND, (stop - start) * MM_PER_SECOND
            fill = tint.colour if tint.sure else "white"
            axes.add_patch(Rectangle((left, bottom), wide, BAR, facecolor=fill, edgecolor=tint.colour, linewidth=0.8))


def _legend_height(tints: Sequence[Tint]) -> float:
    return sum(LINE * (1 + bool(tint.note)) + 0.8 for tint in tints) + (1.0 if tints else 0.0)


def _legend(axes, top: float, tints: Sequence[Tint]):
    """Writes title and note of each tint beside a square of its colour, from `top` mm downward."""
    from matplotlib.patches import Rectangle

    at = top - LINE / 2
    for number, tint in enumerate(tints, 1):
        fill, ink = (tint.colour, "white") if tint.sure else ("white", tint.colour)
        axes.add_patch(Rectangle((LEFT, at - 1.5), 3.0, 3.0, facecolor=fill, edgecolor=tint.colour, linewidth=1.0))
        axes.text(LEFT + 1.5, at - 0.1, str(number), fontsize=2.2 * POINTS, color=ink, ha="center", va="center")
        axes.text(LEFT + 4.5, at, tint.title, fontsize=3.0 * POINTS, weight="bold", color=tint.colour, **FREE)
        at -= LINE
        if tint.note:
            axes.text(LEFT + 4.5, at, tint.note, fontsize=2.5 * POINTS, **FREE)
            at -= LINE
        at -= 0.8


def _about_median(row: np.ndarray) -> np.ndarray:
    return row - np.nanmedian(row) if np.isfinite(row).any() else row


def _header(axes, width: float, height: float, title: str, columns=((), ())):
    if title:
        axes.text(LEFT, height - 5.0, title, fontsize=4.2 * POINTS, weight="bold", **FREE)
    top = height - 5.0 - (LINE + 1 if title else 0)
    axes.text(LEFT, top, NOTICE, fontsize=2.9 * POINTS, va="center", color="#a01010")
    for x, lines in zip((LEFT, LEFT + (width - LEFT - RIGHT) / 2), columns, strict=True):
        for number, line in enumerate(lines, start=1):
            axes.text(x, top - LINE * number, line, fontsize=2.9 * POINTS, **FREE)
