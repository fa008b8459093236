"""Measures where the beat queries look: the beats and waves that each covers, and how far they specialise."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from explain_melp import FRAME, Recording, beat_bounds, query_attention
from melp.explain.beats import find_beats
from melp.files import write_atomically
from melp.names import name_hash
from melp.notice import NOTICE
from melp.predict.pictures import all_leads
from melp.predict.reading import Item, picture_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Seconds from the R peak; ST-T ends at 60% of the interval to the next one at the latest.
WAVES = {"P": (-0.24, -0.06), "QRS": (-0.06, 0.06), "ST-T": (0.06, 0.42)}
REST = "rest"
COVERED = 1.5  # times as much attention as time: a query covers a beat from there on


@dataclass
class QueryReport:
    """Holds where the queries look in one recording.

    Attributes:
        attention: (queries, frames), rows sum to 1 over what was recorded; a frame is `FRAME` s.
        beats: R peaks in s.
        entropy: (queries,), 1 where a query looks everywhere alike, 0 for a single frame.
        half: (queries,), the fewest seconds with half of its attention.
        waves: (queries, P QRS ST-T rest), shares of its attention; `time`: (4,), these waves' shares of the time.
        covered: of each query the numbers, from 1 on, of the beats that it covers.
        overlap: (queries, queries), what two share: 1 where they look alike, 0 where never at the same time.
    """

    attention: np.ndarray
    beats: list[float]
    entropy: np.ndarray
    half: np.ndarray
    waves: np.ndarray
    time: np.ndarray
    covered: list[list[int]]
    overlap: np.ndarray

    @property
    def mean_overlap(self) -> float:
        """Returns the mean over all pairs of queries."""
        pairs = self.overlap[np.triu_indices(len(self.overlap), 1)]
        return float(pairs.mean()) if len(pairs) else 1.0


def wave_of_frames(beats: Sequence[float], frames: int) -> np.ndarray:
    """Returns the wave in which the middle of each frame lies, (frames,): a number in `WAVES`, or that of the rest."""
    middles, waves = (np.arange(frames) + 0.5) * FRAME, np.full(frames, len(WAVES))
    intervals = np.append(np.diff(beats), np.diff(beats)[-1:] if len(beats) > 1 else 0.8)
    for beat, interval in zip(beats, intervals, strict=False):
        for number, (start, stop) in reversed(list(enumerate(WAVES.values()))):
            stop = min(stop, 0.6 * interval) if number == len(WAVES) - 1 else stop
            waves[(middles >= beat + start) & (middles < beat + stop)] = number
    return waves


def measure_queries(attention: np.ndarray, beats: Sequence[float], recorded: np.ndarray) -> QueryReport:
    """Measures attention (queries, frames); `recorded`: (frames,) bool."""
    attention = attention * recorded
    attention = attention / attention.sum(axis=1, keepdims=True)
    count, seconds = int(recorded.sum()), recorded.sum() * FRAME
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nansum(attention * np.log(attention), axis=1) / np.log(max(count, 2))
    ranked = np.cumsum(-np.sort(-attention, axis=1), axis=1)
    waves = wave_of_frames(beats, attention.shape[1])
    wave_rows = np.stack([(waves == number) & recorded for number in range(len(WAVES) + 1)])
    bounds, middles = (
        beat_bounds(beats, seconds) if len(beats) else np.zeros(1),
        (np.arange(len(recorded)) + 0.5) * FRAME,
    )
    covered = [[] for _ in attention]
    for number, (start, stop) in enumerate(pairwise(bounds), 1):
        inside = (middles >= start) & (middles < stop) & recorded
        for query, row in enumerate(attention):
            if inside.any() and row[inside].sum() >= COVERED * inside.sum() / count:
                covered[query].append(number)
    return QueryReport(
        attention=attention,
        beats=list(beats),
        entropy=entropy,
        half=((ranked < 0.5).sum(axis=1) + 1) * FRAME,
        waves=attention @ wave_rows.T,
        time=wave_rows.sum(axis=1) / count,
        covered=covered,
        overlap=np.minimum(attention[:, None], attention[None]).sum(axis=2),
    )


def measure_item(model, item: Item) -> QueryReport:
    """Measures the queries on a recording's first window."""
    values, mask = torch.as_tensor(item.values[:1]).float(), torch.as_tensor(item.lead_mask[:1])
    attention, _ = query_attention(model, values, mask)
    rate = model.config.ecg_config.sampling_rate
    recorded = Recording(model, values, mask, torch.zeros(1, model.config.ecg_config.projection_dim)).recorded
    return measure_queries(attention[0], find_beats(values[0].numpy(), rate, mask[0].numpy()), recorded)


# ------------------------------------------------------------------------------------------------------------- output


def as_text(item: Item, report: QueryReport) -> str:
    """Returns a recording's queries as a table for the screen."""
    names = [*WAVES, REST]
    lines = [
        f"{item.record}  ({item.path}): {len(report.beats)} beats, {len(report.attention)} queries",
        f"  query  entropy  half in  {'  '.join(f'{name:>5}' for name in names)}  beats covered",
    ]
    for number, (entropy, half, waves, covered) in enumerate(
        zip(report.entropy, report.half, report.waves, report.covered, strict=True), 1
    ):
        shares = "  ".join(f"{share:5.0%}" for share in waves)
        beats = ", ".join(map(str, covered)) or "none more than others"
        lines.append(f"  {number:5}  {entropy:7.2f}  {half:5.1f} s  {shares}  {beats}")
    lines.append(f"  {'time':>5}  {'':7}  {'':7}  {'  '.join(f'{share:5.0%}' for share in report.time)}")
    return "\n".join([*lines, f"  overlap between queries: {report.mean_overlap:.2f} (1: all look alike)"])


def summary(reports: list[QueryReport]) -> str:
    """Returns the means over recordings, as a Markdown table, with the smallest and largest recording's."""
    from melp.markdown import table

    def cell(values, digits=2):
        return f"{np.mean(values):.{digits}f} ({np.min(values):.{digits}f} to {np.max(values):.{digits}f})"

    rows = [
        ["entropy of a query over time (1: everywhere alike)", cell([r.entropy.mean() for r in reports])],
        ["seconds that hold half of a query's attention", cell([r.half.mean() for r in reports], 1)],
        ["overlap between two queries (1: alike)", cell([r.mean_overlap for r in reports])],
        ["beats that a query covers", cell([np.mean([len(c) for c in r.covered]) for r in reports], 1)],
        ["beats in a recording", cell([len(r.beats) for r in reports], 1)],
    ]
    for number, name in enumerate([*WAVES, REST]):
        ratio = [r.waves[:, number].mean() / max(r.time[number], 1e-9) for r in reports]
        rows.append([f"attention on {name}, against its share of the time", cell(ratio)])
    if len(reports) > 1 and len({r.attention.shape for r in reports}) == 1:
        rows.append(["attention over time, correlation between recordings (by query)", cell(_between(reports))])
    return table([f"{len(reports)} recordings", "mean (least to most)"], rows)


def _between(reports: list[QueryReport]) -> list[float]:
    """Returns, per query, the mean correlation of its attention over time in different recordings: 1 where it looks at
    the clock and not at the heart."""
    stacked = np.stack([report.attention for report in reports], axis=1)  # (queries, recordings, frames)
    pairs = np.triu_indices(len(reports), 1)
    return [float(np.nanmean(np.corrcoef(rows)[pairs])) for rows in stacked]


def write(item: Item, report: QueryReport, model: str, output: Path) -> list[str]:
    """Writes JSON and a picture in three forms, and returns their names."""
    output.mkdir(parents=True, exist_ok=True)
    name = f"{picture_name(item.path, name_hash(item.path))}-beats"
    content = {
        "notice": NOTICE,
        "record": item.record,
        "model": model,
        "beats_s": [round(beat, 3) for beat in report.beats],
        "frame_s": FRAME,
        "overlap": round(report.mean_overlap, 4),
        "queries": [
            {
                "entropy": round(float(report.entropy[number]), 4),
                "half_s": round(float(report.half[number]), 2),
                "beats": report.covered[number],
                "waves": dict(zip([*WAVES, REST], (round(float(x), 4) for x in report.waves[number]), strict=True)),
                "attention": [round(float(x), 6) for x in row],
            }
            for number, row in enumerate(report.attention)
        ],
    }
    write_atomically(output / f"{name}.json", json.dumps(content, indent=1) + "\n")
    sheet = draw_queries(item, report)
    for form in ("png", "svg", "pdf"):
        write_atomically(output / f"{name}.{form}", lambda path, f=form: sheet.savefig(path, format=f))
    return [f"{name}.json", f"{name}.{{png,svg,pdf}}"]


def write_summary(reports: list[QueryReport], output: Path):
    """Writes `summary.json`: the means over recordings as a table, as `python -m melp.evaluation.tables` takes it."""
    content = {"records": len(reports), "tables": {"Beat queries": str(summary(reports))}}
    write_atomically(output / "summary.json", json.dumps(content, indent=1) + "\n")


def draw_queries(item: Item, report: QueryReport) -> "Figure":
    """Draws two leads as printed, and below them each query's attention over the same time, the beats numbered."""
    from melp.drawing import INCH, LEFT, MM_PER_SECOND, POINTS, SECONDS, draw_sheet

    signal, leads, derived = all_leads(item.block, item.quality["derived_leads"])
    chosen = [lead for lead in ("II", "V1") if lead in leads] or list(leads[:1])
    sheet = draw_sheet(
        signal,
        leads,
        item.block.sampling_rate,
        ",".join(chosen),
        title=f"{item.record}: where the beat queries look",
        derived=derived,
        start=item.starts[0],
    )
    row, space = 4.0, 16.0  # mm: of a query; for the numbers above and the line below
    wide, high = (size * INCH for size in sheet.get_size_inches())
    extra = row * len(report.attention) + space
    sheet.set_size_inches(wide / INCH, (high + extra) / INCH)
    sheet.axes[0].set_position((0, extra / (high + extra), 1, high / (high + extra)))
    box = (
        LEFT / wide,
        8.0 / (high + extra),
        SECONDS * MM_PER_SECOND / wide,
        row * len(report.attention) / (high + extra),
    )
    axes = sheet.add_axes(box)
    even = 1 / max(1, np.count_nonzero(report.attention.sum(axis=0)))
    relative, end = report.attention / even, report.attention.shape[1] * FRAME
    most = max(2.0, float(relative.max()))
    axes.imshow(
        relative, aspect="auto", cmap="Blues", vmin=0, vmax=most, extent=(0, end, len(relative) + 0.5, 0.5), zorder=1
    )
    axes.set(xlim=(0, SECONDS), yticks=range(1, len(relative) + 1), xticks=[])
    axes.tick_params(labelsize=2.4 * POINTS, length=0)
    axes.set_ylabel("query", fontsize=2.6 * POINTS, labelpad=1)
    for number, beat in enumerate(report.beats, 1):
        axes.axvline(beat, color="#d55e00", linewidth=0.6, zorder=2)
        axes.text(beat, 0.35, str(number), fontsize=2.6 * POINTS, color="#d55e00", ha="center", va="bottom")
    axes.text(
        0,
        len(relative) + 0.8,
        f"white: none; darkest: {most:.1f} times as much as on average. Lines: R peaks, numbered.  "
        f"Overlap of two queries {report.mean_overlap:.2f} (1: alike), entropy {report.entropy.mean():.2f} (1: even).",
        fontsize=2.6 * POINTS,
        va="top",
    )
    return sheet
