"""The ECG as clinicians print it, with the traces tinted by what carries each text."""

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import torch

from explain_melp import Evidence, find_absent
from melp.drawing import COLOURS, Tint, draw_sheet
from melp.predict.pictures import all_leads
from melp.predict.reading import Item
from signal_melp import LEADS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE_LETTERS, NOTE_LETTERS = 125, 168  # of a line of the legend


def draw_evidence(item: Item, evidence: list[Evidence], layout: str, rate: float) -> "list[Figure]":
    """Draws a recording's first window with its evidence, a sheet for every five texts, which have a colour each.

    Args:
        rate: Hz of `item.values`, what the model read.
    """
    signal, leads, derived = all_leads(item.block, item.quality["derived_leads"])
    signal = _as_read(item, signal, leads, rate)
    start = item.starts[0]
    sheets = []
    for first in range(0, max(1, len(evidence)), len(COLOURS)):
        part = evidence[first : first + len(COLOURS)]
        tints = [tint_of(one, colour, start) for one, colour in zip(part, COLOURS, strict=False)]
        sheets.append(
            draw_sheet(
                signal,
                leads,
                item.block.sampling_rate,
                layout,
                title=f"{item.record}: evidence",
                derived=derived,
                start=start,
                tints=tints,
            )
        )
    return sheets


def _as_read(item: Item, signal: np.ndarray, leads: list[str], rate: float) -> np.ndarray:
    """Returns the signal without what the model did not see: of a print, each lead outside its column."""
    values = torch.as_tensor(item.values[0])
    absent = find_absent(values, rate).numpy()
    rows = [LEADS.index(lead) for lead in leads]
    places = np.arange(signal.shape[1]) * rate / item.block.sampling_rate
    hidden = absent[rows][:, np.minimum(places.astype(int), values.shape[1] - 1)]
    return np.where(hidden & ~hidden.all(axis=1, keepdims=True), np.nan, signal)


def tint_of(evidence: Evidence, colour: str, start: float = 0.0) -> Tint:
    """Returns how evidence is drawn: its leads where it is shown, paler where it is not faithful."""
    shown = ", ".join(f"{start + a:.1f}-{start + b:.1f}" for a, b, _ in evidence.spans)
    title = textwrap.shorten(evidence.text, 70, placeholder="...").rstrip(".") + f" · score {evidence.score:.2f}"
    if evidence.spans:
        title += f" · {leads_in_words(evidence)} · {shown} s"
    return Tint(
        colour,
        [span[:2] for span in evidence.spans],
        evidence.shown_leads,
        textwrap.shorten(title, TITLE_LETTERS, placeholder="..."),
        textwrap.shorten(_capital(evidence.sentence), NOTE_LETTERS, placeholder="..."),
        sure=bool(evidence.faithfulness.get("faithful")),
    )


def leads_in_words(evidence: Evidence) -> str:
    """Returns "V2, V3", "all leads", or "all leads but III, aVF", whichever is shorter."""
    shown, others = evidence.shown_leads, [lead for lead in evidence.leads if lead not in evidence.shown_leads]
    if not others:
        return "all leads"
    return ", ".join(shown) or "-" if len(shown) <= len(others) else f"all leads but {', '.join(others)}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
