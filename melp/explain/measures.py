"""Measures attributions: deletion and insertion curves, faithfulness of what is shown, and where it points."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from explain_melp import CELL, FRAME, Recording, attribute, by_cell, can_compare, elsewhere, is_faithful, shown_frames
from melp.synthetic.places import Place
from signal_melp import LEADS

SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)  # of the recorded time that is removed, or all that is left
NEAR = 0.1  # s: a cell that a truth touches by this margin counts as in it
RANDOM = "random"  # cells in random order, beside the methods of explain_melp
# Where statements about real recordings say that something is, by the names of `labels.yaml`: the leads that look at
# the territory (AHA/ACCF/HRS 2009, part VI), and those in which a bundle branch block is read (part III).
TERRITORIES = {
    "inferior infarction": ("II", "III", "aVF"),
    "inferior ischaemia": ("II", "III", "aVF"),
    "anterior infarction": ("V1", "V2", "V3", "V4", "V5", "V6"),  # with its septal and lateral neighbours
    "anterior ischaemia": ("V1", "V2", "V3", "V4", "V5", "V6"),
    "lateral infarction": ("I", "aVL", "V5", "V6"),
    "right bundle branch block": ("I", "V1", "V2", "V6"),
    "left bundle branch block": ("I", "aVL", "V1", "V2", "V5", "V6"),
}


@dataclass
class Measured:
    """The figures of one attribution of one text on one recording.

    Attributes:
        deletion, insertion: (shares,) the score without the strongest cells, and with them alone.
        score, blank: of the whole recording, and of its level alone.
        removed_s, without, without_elsewhere, faithful: see `explain_melp.Evidence`.
        pointing, inside, chance: whether the strongest cell is in the truth, the share of the evidence that is, and
            the share of the time that is; None without a truth.
        lead_pointing, leads_inside, lead_chance: the same of leads, where the finding shows in some leads only.
    """

    score: float
    blank: float
    deletion: np.ndarray
    insertion: np.ndarray
    removed_s: float
    without: float
    without_elsewhere: float
    faithful: bool
    truth: dict[str, float | None] = field(default_factory=dict)


LOCATED = ("pointing", "inside", "chance", "lead_pointing", "leads_inside", "lead_chance")


def attributions(
    recording: Recording, sentence_embeds, methods: Sequence[str], beats: Sequence[float], seed: int
) -> dict[str, np.ndarray]:
    """Returns the maps (texts, leads, frames) of each method; of `RANDOM` too.

    Where no beats were found, `beat-occlusion` removes short windows.
    """
    maps = {}
    for method in methods:
        if method == RANDOM:
            cells = np.random.default_rng(seed).random(-(-recording.frames // CELL)).repeat(CELL)[: recording.frames]
            present = recording.present.cpu().numpy()
            weights = present[:, None] * (cells * recording.recorded)
            maps[method] = np.stack([weights / weights.sum()] * len(sentence_embeds)).astype(np.float32)
        else:
            by_beat = method == "beat-occlusion"
            maps[method] = attribute(
                recording, sentence_embeds, "occlusion" if by_beat and not len(beats) else method, beats
            )
    return maps


def measure(
    recording: Recording, weights: np.ndarray, text: int, place: Place | None, draws: int, seed: int
) -> Measured:
    """Measures the attribution (leads, frames) of one text; `place`: where the truth is, if it is known."""
    rng = np.random.default_rng(seed)
    over_time = weights.sum(axis=0)
    shown = shown_frames(over_time)
    strongest = [_strongest(over_time, recording.recorded, share, rng) for share in SHARES]
    others = [elsewhere(shown, recording.recorded, rng) for _ in range(draws)]
    none, everything = np.zeros_like(shown), np.ones_like(shown)
    masks = [none, everything, shown, *strongest, *(~mask for mask in strongest), *others]
    scores = recording.scores(np.stack(masks)[:, None])[:, text]
    score, blank, without = scores[:3].tolist()
    deletion, insertion, rest = np.split(scores[3:], [len(SHARES), 2 * len(SHARES)])
    return Measured(
        score=score,
        blank=blank,
        deletion=deletion,
        insertion=insertion,
        removed_s=float(shown.sum() * FRAME),
        without=without,
        without_elsewhere=float(rest.mean()),
        faithful=can_compare(shown, recording.recorded) and is_faithful(score, without, rest.tolist()),
        truth=dict.fromkeys(LOCATED) if place is None else locate(weights, recording.recorded, place),
    )


def _strongest(over_time: np.ndarray, recorded: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Returns the frames of the cells with most evidence that fill a share of the recorded time; ties at random."""
    cells, there = by_cell(over_time), by_cell(recorded.astype(float)) > 0
    order = np.lexsort((rng.random(len(cells)), -np.where(there, cells, -1.0)))
    mask = np.zeros(len(cells), dtype=bool)
    mask[order[: max(1, round(share * there.sum()))]] = True
    return mask.repeat(CELL)[: len(over_time)]


def locate(weights: np.ndarray, recorded: np.ndarray, place: Place) -> dict[str, float | None]:
    """Compares an attribution (leads, frames) with where the truth is; see `Measured`.

    A place without spans says nothing of time.
    """
    over_time, over_leads = weights.sum(axis=0), weights.sum(axis=1)
    total = over_time.sum()
    located: dict[str, float | None] = dict.fromkeys(LOCATED)
    if place.spans:
        located |= _locate_in_time(over_time, recorded, place)
    leads = np.isin(LEADS, list(place.leads))
    if not leads.all() and total > 0:
        located["lead_pointing"] = float(leads[over_leads.argmax()])
        located["leads_inside"] = float(over_leads[leads].sum() / total)
        located["lead_chance"] = float(leads.mean())
    return located


def _locate_in_time(over_time: np.ndarray, recorded: np.ndarray, place: Place) -> dict[str, float]:
    middles = (np.arange(len(over_time)) + 0.5) * FRAME
    inside = np.zeros(len(middles), dtype=bool)
    for start, stop in place.spans:
        inside |= (middles >= start - NEAR) & (middles <= stop + NEAR)
    total, chance = over_time.sum(), float(inside[recorded].mean())
    # A smooth map has its peak in the middle of a cell.
    peak = int(by_cell(over_time).argmax()) * CELL + CELL // 2
    return {
        "pointing": float(total > 0 and inside[min(peak, len(inside) - 1)]),
        "inside": float(over_time[inside].sum() / total) if total > 0 else chance,
        "chance": chance,
    }
