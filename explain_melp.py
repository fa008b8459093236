"""Evidence on the trace: which stretch of time and which leads of a recording carry its similarity with a text.

The score of a text is the cosine of its embedding and the recording's. An attribution spreads it over leads and time;
`METHODS` are compared by `evaluate.py faithfulness`, and the default is the winner of that table. Every answer is then
put to the test on the recording itself: what is shown is removed, and as much elsewhere (`measure_faithfulness`).

What is removed gives way to the lead's own local level, a line through its medians over one second, faded in over
20 ms: baseline wander continues, and nothing jumps. Zeros or a mean would be a step, which no electrocardiograph
records and which reads as a wave of its own. What remains is a flat stretch, as in a pause; the same is done
elsewhere, so that a model that merely minds pauses counts as not faithful. Min-max scaling is not repeated: nothing
but the stretch changes.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

try:
    from .losses_melp import beat_attention
    from .signal_melp import LEADS
except ImportError:
    if __package__:  # remote code: a real error must not be hidden
        raise
    from losses_melp import beat_attention
    from signal_melp import LEADS

METHODS = ("attention", "contribution", "gradient", "integrated-gradients", "occlusion", "beat-occlusion", "masking")
METHOD = "masking"
FRAME = 0.04  # s of a column of the weights: a small square of ECG paper
CELL = 5  # frames that are shown or removed together: 0.2 s, a large square
SHOWN_SHARE = 0.5  # of the evidence that is shown ...
SHOWN_LEAST, SHOWN_MOST = 0.4, 4.0  # ... in so many seconds
DRAWS = 19  # of as much elsewhere: by chance, what is shown beats all of them one time in twenty
LEAST_FALL = 0.1  # of the score, for what is shown to count
STEPS = 16  # of integrated gradients
MASKS, MASKED_TIME, MASKED_LEADS = 512, 0.4, 0.2  # of masking: how many, and what share each removes


@dataclass
class Evidence:
    """Holds where a recording bears out a text, and how that was tested.

    Attributes:
        text: the sentence, or the name of the finding.
        score: cosine of the recording's embedding and the text's.
        method: the attribution, one of `METHODS`.
        spans: (start s, end s, share of the evidence) of what is shown, in the order of time.
        leads: share of the evidence by lead; all alike where the method knows no leads (`attention`, `contribution`).
        beats: `{"time": s, "start": s, "end": s, "weight": share}` of each beat, where beats were given.
        shown_leads: the leads, strongest first until half of the fall is reached, in which removing the shown stretch
            is enough; all where the method knows no leads.
        weights: (leads, frames) float32, at least 0, sum 1 (0 where there is nothing to show); a frame is `FRAME` s.
        faithfulness: `removed_s`, `score`, `without` (the score without the shown stretch, in all leads),
            `without_in_leads` (in the shown leads alone), `without_elsewhere` (without as much elsewhere, the mean of
            `DRAWS` draws), `faithful`.
    """

    text: str
    score: float
    method: str
    spans: list[tuple[float, float, float]] = field(default_factory=list)
    leads: dict[str, float] = field(default_factory=dict)
    beats: list[dict[str, float]] = field(default_factory=list)
    shown_leads: list[str] = field(default_factory=list)
    weights: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    faithfulness: dict = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """Says what removing the evidence does to the score, and whether the evidence is faithful."""
        if not self.spans:
            return "nothing to show: no part of the recording raises the score"
        facts = self.faithfulness
        lowers = "lowers the score" if facts["without"] < facts["score"] else "does not lower the score:"
        alone = ""
        if len(self.shown_leads) < len(self.leads):
            alone = f" (in the shown leads alone to {facts['without_in_leads']:.2f})"
        said = (
            f"removing the shown {facts['removed_s']:.1f} s {lowers} from {facts['score']:.2f} to "
            f"{facts['without']:.2f}{alone}; removing as much elsewhere leaves {facts['without_elsewhere']:.2f}"
        )
        return said if facts["faithful"] else f"not faithful here: {said}"

    def to_json(self) -> dict:
        """Returns plain types, as `json.dump` takes them."""
        return {
            "text": self.text,
            "score": round(self.score, 4),
            "method": self.method,
            "spans": [dict(zip(("start_s", "end_s", "weight"), _rounded(span), strict=True)) for span in self.spans],
            "leads": {lead: round(weight, 4) for lead, weight in self.leads.items()},
            "shown_leads": self.shown_leads,
            "beats": [{name: round(value, 4) for name, value in beat.items()} for beat in self.beats],
            "faithfulness": {
                name: value if isinstance(value, bool) else round(value, 4)
                for name, value in self.faithfulness.items()
            }
            | {"sentence": self.sentence},
            "frame_s": FRAME,
            "weights": [_rounded(row, 6) for row in self.weights],
        }


def _rounded(values, digits: int = 4) -> list[float]:
    return [round(float(value), digits) for value in values]


# ---------------------------------------------------------------------------------------------------------------------
# Removing


def local_level(values: torch.Tensor, rate: float) -> torch.Tensor:
    """Returns the level of each lead from moment to moment: a line through medians over 1 s, 0.2 s apart.

    Where a lead is absent (0 for 0.2 s or more, as the processor masks it, in a print for instance) it stays so.

    Args:
        values: (leads, samples); rate: Hz.
    """
    samples, half, absent = values.shape[-1], max(1, round(0.5 * rate)), find_absent(values, rate)
    known = values.masked_fill(absent, math.nan)
    centres = np.linspace(0, samples - 1, max(2, round(samples / (0.2 * rate)) + 1)).round().astype(int)
    medians = [known[:, max(0, centre - half) : centre + half + 1].nanmedian(dim=-1).values for centre in centres]
    line = F.interpolate(
        torch.stack(medians, dim=-1).nan_to_num()[None], size=samples, mode="linear", align_corners=True
    )
    return line[0].masked_fill(absent, 0.0)


def find_absent(values: torch.Tensor, rate: float) -> torch.Tensor:
    """Returns where (leads, samples) is 0 for 0.2 s or more, as it is where the processor masks a lead."""
    width = min(round(0.2 * rate), values.shape[-1]) // 2 * 2 + 1
    known = (values != 0).float()
    long_enough = F.max_pool1d(known, width, stride=1, padding=width // 2) == 0  # the middles of such stretches
    return F.max_pool1d(long_enough.float(), width, stride=1, padding=width // 2) > 0


class Recording:
    """Holds one recording, its level and some texts, and scores it with parts removed.

    Args:
        model: a `MelpModel`.
        input_values: (1, leads, samples), scaled; lead_mask: (1, leads) bool, None where all leads are present.
        text_embeds: (texts, dim), L2-normalised.

    Attributes:
        values, level: (leads, samples); present: (leads,) bool; recorded: (frames,) bool, false where the recording
            was padded to the model's length; there: (leads, frames) bool, false where a lead is absent.
    """

    def __init__(self, model, input_values, lead_mask, text_embeds: torch.Tensor, batch_size: int = 32):
        config = model.config.ecg_config
        if input_values.ndim != 3 or input_values.shape[0] != 1:
            raise ValueError(f"explain takes one recording, (1, leads, samples), not {tuple(input_values.shape)}.")
        self.model, self.text_embeds, self.batch_size = model, text_embeds.float(), batch_size
        self.rate = float(config.sampling_rate)
        self.values = input_values[0].to(model.device).float()
        leads, samples = self.values.shape
        self.present = torch.ones(leads, dtype=torch.bool, device=self.values.device)
        if lead_mask is not None:
            self.present = lead_mask[0].to(self.values.device, torch.bool)
        self.values = self.values * self.present[:, None]
        self.level = local_level(self.values, self.rate)
        self.frames = math.ceil(round(samples / (FRAME * self.rate), 6))
        self.frame_of = torch.arange(samples, device=self.values.device).div(FRAME * self.rate).long()
        changes = (self.values.diff(dim=-1) != 0).any(dim=0).nonzero()
        last = int(changes.max()) + 2 if len(changes) else samples  # padding repeats one value in every lead
        self.recorded = np.arange(self.frames) * FRAME * self.rate < last
        self.there = self.per_frame((~find_absent(self.values, self.rate)).float()) > 0

    def per_frame(self, values: torch.Tensor) -> np.ndarray:
        """Sums (..., samples) over each frame: (..., frames)."""
        sums = values.new_zeros(*values.shape[:-1], self.frames)
        return sums.index_add_(-1, self.frame_of, values).cpu().numpy()

    def embed(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the cosines of recordings (batch, leads, samples) with the texts, (batch, texts)."""
        outputs = self.model.ecg_model(values, lead_mask=self.present.expand(len(values), -1))
        return F.normalize(outputs.rhythm_embeds.float(), dim=-1) @ self.text_embeds.T

    @torch.no_grad()
    def scores(self, removed: np.ndarray) -> np.ndarray:
        """Returns the scores (n, texts) of the recording without some of it.

        Args:
            removed: (n, 1 or leads, frames) bool, what is removed, in all leads or in some.
        """
        parts = []
        for start in range(0, len(removed), self.batch_size):
            mask = torch.from_numpy(removed[start : start + self.batch_size]).to(self.values)
            fade = _fade(mask[..., self.frame_of], round(0.02 * self.rate))
            parts.append(self.embed(torch.lerp(self.values, self.level, fade)).cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, len(self.text_embeds)), np.float32)


def _fade(mask: torch.Tensor, samples: int) -> torch.Tensor:
    """Smooths the edges of masks (n, leads, samples) over a few samples."""
    width = samples // 2 * 2 + 1
    return F.avg_pool1d(F.pad(mask, (width // 2, width // 2), mode="replicate"), width, stride=1)


# ---------------------------------------------------------------------------------------------------------------------
# Attributions: each returns (texts, leads, frames), any sign; only what is above 0 counts


@contextlib.contextmanager
def attention_weights(attention) -> Iterator[list[torch.Tensor]]:
    """Collects weights of an attention, (batch, heads, queries, keys) per call, which fused kernels do not give."""
    collected, config = [], attention.config
    implementation, config._attn_implementation = config._attn_implementation, "eager"
    handle = attention.register_forward_hook(lambda module, inputs, outputs: collected.append(outputs[1]))
    try:
        yield collected
    finally:
        handle.remove()
        config._attn_implementation = implementation


def query_attention(model, values: torch.Tensor, lead_mask: torch.Tensor | None = None):
    """Returns where the beat queries look, and what they embed.

    Args:
        values: (batch, leads, samples), scaled.

    Returns:
        (batch, queries, frames) numpy, over `FRAME`s, rows that sum to 1; (batch, queries, dim) `beat_embeds`.
    """
    config = model.config.ecg_config
    with torch.no_grad(), attention_weights(model.ecg_model.beat_pooler.attention) as collected:
        outputs = model.ecg_model(values, lead_mask=lead_mask)
    weights = collected[0].float().mean(dim=1).cpu().numpy()  # over the heads
    # An encoder frame reads a stretch of samples; its weight belongs to the middle of that.
    step, reach = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        reach, step = reach + (kernel - 1) * step, step * stride
    centres = (np.arange(weights.shape[-1]) * step + (reach - 1) / 2) / config.sampling_rate
    frames = math.ceil(round(values.shape[-1] / (FRAME * config.sampling_rate), 6))
    times = (np.arange(frames) + 0.5) * FRAME
    spread = np.stack([[np.interp(times, centres, row) for row in record] for record in weights])
    return spread / spread.sum(axis=-1, keepdims=True), outputs.beat_embeds.float()


def _attention(recording: Recording, sentence_embeds: torch.Tensor) -> np.ndarray:
    """Chains a sentence's attention over beat queries, as the beat loss trains it, to the queries' over time."""
    over_time, beats = query_attention(recording.model, recording.values[None], recording.present[None])
    mask = torch.ones(1, len(sentence_embeds), dtype=torch.bool, device=beats.device)
    scale = recording.model.config.beat_attention_scale
    over_queries = beat_attention(beats, sentence_embeds[None].float(), mask, scale)[0].detach().cpu().numpy()
    return _in_all_leads(recording, over_queries @ over_time[0])


def _contribution(recording: Recording) -> np.ndarray:
    """Chains each query's part of the cosine to where it looks: the embedding is the mean of the queries' outputs."""
    over_time, beats = query_attention(recording.model, recording.values[None], recording.present[None])
    parts = (recording.text_embeds @ beats[0].T).detach().cpu().numpy()
    return _in_all_leads(recording, np.maximum(parts, 0.0) @ over_time[0])


def _in_all_leads(recording: Recording, over_time: np.ndarray) -> np.ndarray:
    present = recording.present.cpu().numpy()
    return over_time[:, None, :] * present[None, :, None]


def _gradient(recording: Recording, steps: int = 1) -> np.ndarray:
    """Multiplies the gradient by the distance from the level, at the recording or (steps > 1) on the way to it."""
    distance = recording.values - recording.level
    shares = torch.ones(1) if steps == 1 else (torch.arange(steps) + 0.5) / steps
    path = recording.level + shares.to(distance)[:, None, None] * distance
    path.requires_grad_(True)
    with torch.enable_grad():
        totals = recording.embed(path).sum(dim=0)
        maps = []
        for number, total in enumerate(totals):
            gradient = torch.autograd.grad(total, path, retain_graph=number + 1 < len(totals))[0]
            maps.append(recording.per_frame(gradient.mean(dim=0) * distance))
    kernel = np.ones(CELL) / CELL
    return np.stack([[np.convolve(row, kernel, "same") for row in one] for one in maps])


def _occlusion(recording: Recording, windows: np.ndarray) -> np.ndarray:
    """Removes stretches of time (windows, frames) from all leads, and each lead from all time.

    A frame's part is the mean fall per second of the windows that cover it; the map is the product of time and leads.
    """
    leads = len(recording.present)
    clean = recording.scores(np.zeros((1, 1, recording.frames), dtype=bool))
    falls = (clean - recording.scores(windows[:, None])) / windows.sum(axis=1, keepdims=True)
    covered = np.maximum(windows.sum(axis=0), 1)
    over_time = falls.T @ windows / covered  # (texts, frames)
    by_lead = np.eye(leads, dtype=bool)[:, :, None].repeat(recording.frames, axis=2)
    over_leads = _lead_shares(recording, (clean - recording.scores(by_lead)).T)
    return np.maximum(over_time, 0.0)[:, None, :] * over_leads[:, :, None]


def _masking(recording: Recording, seed: int = 0) -> np.ndarray:
    """Removes many random parts at once, and fits a line to the scores: a ridge regression on what was removed.

    Where every beat says the same, removing one of them costs nothing, and removing several does (Petsiuk et al.,
    RISE, arXiv 1806.07421; Ribeiro et al., LIME, arXiv 1602.04938).
    """
    rng, leads = np.random.default_rng(seed), len(recording.present)
    cells = rng.random((MASKS, -(-recording.frames // CELL))) < MASKED_TIME
    without_lead = rng.random((MASKS, leads)) < MASKED_LEADS
    removed = cells.repeat(CELL, axis=1)[:, None, : recording.frames] | without_lead[:, :, None]
    scores = recording.scores(removed)
    features = np.concatenate([cells, without_lead], axis=1).astype(float)
    features, scores = features - features.mean(axis=0), scores - scores.mean(axis=0)
    penalty = 0.01 * MASKS * np.eye(features.shape[1])
    falls = -np.linalg.solve(features.T @ features + penalty, features.T @ scores).T  # (texts, cells + leads)
    over_time = np.maximum(falls[:, : cells.shape[1]], 0.0).repeat(CELL, axis=1)[:, : recording.frames]
    return over_time[:, None, :] * _lead_shares(recording, falls[:, cells.shape[1] :])[:, :, None]


def _lead_shares(recording: Recording, falls: np.ndarray) -> np.ndarray:
    """Returns (texts, leads): what falls without each lead, all present leads alike where nothing does."""
    falls = np.maximum(falls, 0.0) * recording.present.cpu().numpy()
    falls[falls.sum(axis=1) == 0] = 1.0
    return falls * recording.present.cpu().numpy()


def short_windows(frames: int, recorded: np.ndarray) -> np.ndarray:
    """Returns windows of two cells (0.4 s) that begin a cell apart, (windows, frames) bool."""
    windows = np.zeros((max(1, -(-frames // CELL) - 1), frames), dtype=bool)
    for number, window in enumerate(windows):
        window[number * CELL : (number + 2) * CELL] = True
    windows &= recorded
    return windows[windows.any(axis=1)]


def beat_bounds(beats: Sequence[float], seconds: float) -> np.ndarray:
    """Returns the bounds (beats + 1,) in s between which each beat lies, from 0 to the end of the recording.

    A beat begins before its P wave: 40% of the interval before its R peak, at most 0.35 s; a pause belongs to the beat
    that it follows.
    """
    times = np.asarray(beats, dtype=float)
    lead_in = np.minimum(0.4 * np.diff(times), 0.35)
    return np.concatenate([[0.0], times[1:] - lead_in, [seconds]])


def beat_windows(recording: Recording, beats: Sequence[float]) -> np.ndarray:
    """Returns the frames of each beat, (beats, frames) bool."""
    seconds = recording.recorded.sum() * FRAME
    bounds, times = beat_bounds(beats, seconds), (np.arange(recording.frames) + 0.5) * FRAME
    windows = (times >= bounds[:-1, None]) & (times < bounds[1:, None])
    return windows[windows.any(axis=1)]


def attribute(
    recording: Recording,
    sentence_embeds: torch.Tensor,
    method: str = METHOD,
    beats: Sequence[float] | None = None,
) -> np.ndarray:
    """Spreads the evidence for each text over leads and time.

    Args:
        sentence_embeds: (texts, dim), what the beat loss compares with beats; for `attention`, which reads the texts
            as the sentences of one report, so that one alone attends to all queries alike.
        method: one of `METHODS`.
        beats: R peaks in s, which `beat-occlusion` needs.

    Returns:
        (texts, leads, frames) float32, at least 0, sum 1; all 0 where nothing raises the score.

    Raises:
        ValueError: for an unknown method, or `beat-occlusion` without beats.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}.")
    if method == "beat-occlusion" and (beats is None or len(beats) == 0):
        raise ValueError("beat-occlusion needs the times of the R peaks (beats); take occlusion where there are none.")
    if method == "attention":
        maps = _attention(recording, sentence_embeds)
    elif method == "contribution":
        maps = _contribution(recording)
    elif method == "masking":
        maps = _masking(recording)
    elif method.endswith("occlusion"):
        by_beat = method == "beat-occlusion"
        windows = beat_windows(recording, beats) if by_beat else short_windows(recording.frames, recording.recorded)
        maps = _occlusion(recording, windows)
    else:
        maps = _gradient(recording, steps=1 if method == "gradient" else STEPS)
    maps = np.maximum(maps, 0.0) * (recording.recorded & recording.there)
    total = maps.sum(axis=(1, 2), keepdims=True)
    return (maps / np.where(total > 0, total, 1.0)).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# What is shown, and whether it is faithful


def by_cell(weights: np.ndarray) -> np.ndarray:
    """Sums (..., frames) over cells: (..., cells)."""
    pad = -weights.shape[-1] % CELL
    padded = np.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, pad)])
    return padded.reshape(*weights.shape[:-1], -1, CELL).sum(axis=-1)


def shown_frames(over_time: np.ndarray) -> np.ndarray:
    """Returns which frames are shown, (frames,) bool: the fewest cells with half of the evidence, 0.4 to 4 s.

    Args:
        over_time: (frames,), the evidence summed over the leads.
    """
    cells = by_cell(over_time)
    order = np.argsort(-cells, kind="stable")
    reached = np.searchsorted(np.cumsum(cells[order]), SHOWN_SHARE * cells.sum() * (1 - 1e-6)) + 1
    least, most = (round(seconds / (CELL * FRAME)) for seconds in (SHOWN_LEAST, SHOWN_MOST))
    chosen = order[: min(max(reached, least), most)]
    mask = np.zeros(len(cells), dtype=bool)
    mask[chosen[cells[chosen] > 0]] = True
    return mask.repeat(CELL)[: len(over_time)]


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Returns (first, behind last) of every run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


def elsewhere(shown: np.ndarray, recorded: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws as much of a recording elsewhere: the same stretches, in random order and places, none of them shown.

    Args:
        shown, recorded: (frames,) bool. Where less than as much is left, all of it is drawn.
    """
    free = np.flatnonzero(recorded & ~shown)
    lengths = rng.permutation([last - first for first, last in runs(shown)])
    spare = len(free) - lengths.sum()
    drawn = np.zeros_like(shown)
    if spare <= 0:
        drawn[free] = True
        return drawn
    gaps = np.sort(rng.integers(0, spare + 1, len(lengths)))  # free frames before each stretch
    for gap, before, length in zip(gaps, np.cumsum(lengths) - lengths, lengths, strict=True):
        drawn[free[gap + before : gap + before + length]] = True
    return drawn


def can_compare(shown: np.ndarray, recorded: np.ndarray) -> bool:
    """Returns whether something is shown, and as much of the recording (frames,) is left to be removed instead."""
    return bool(0 < shown.sum() <= (recorded & ~shown).sum())


def is_faithful(score: float, without: float, without_elsewhere: Sequence[float]) -> bool:
    """Returns whether removing it costs a tenth of the score or more, and more than each removal elsewhere."""
    return score > 0 and score - without >= LEAST_FALL * score and without < min(without_elsewhere)


def measure_faithfulness(
    recording: Recording, shown: np.ndarray, text: int, draws: int = DRAWS, seed: int = 0
) -> dict[str, float | bool]:
    """Removes what is shown (frames,), and as much elsewhere; see `Evidence.faithfulness`.

    In a recording that has not as much elsewhere nothing is compared, so that its evidence does not pass as faithful.
    """
    rng = np.random.default_rng(seed)
    masks = [np.zeros_like(shown), shown, *(elsewhere(shown, recording.recorded, rng) for _ in range(draws))]
    score, without, *others = recording.scores(np.stack(masks)[:, None])[:, text].tolist()
    return {
        "removed_s": float(shown.sum() * FRAME),
        "score": score,
        "without": without,
        "without_elsewhere": float(np.mean(others)),
        "faithful": can_compare(shown, recording.recorded) and is_faithful(score, without, others),
    }


def enough_leads(
    recording: Recording, shown: np.ndarray, shares: np.ndarray, text: int, score: float, without: float
) -> tuple[np.ndarray, float]:
    """Finds leads in which removing the shown stretch reaches half of what removing it in all of them does.

    Leads share what they see, so that the strongest alone may not matter: they are removed one after the other.

    Args:
        shares: (leads,), the evidence of each; where all count alike, none comes before another, and all are needed.

    Returns:
        (leads,) bool, and the score without the stretch in these leads.
    """
    order = np.flatnonzero(recording.present.cpu().numpy())
    order = order[np.argsort(-shares[order], kind="stable")]
    some = np.zeros((len(order), len(shares)), dtype=bool)
    for count in range(len(order)):
        some[count:, order[count]] = True
    scores = recording.scores(some[:, :, None] & shown)[:, text]
    enough = score - scores >= SHOWN_SHARE * (score - without)
    alike = np.ptp(shares[order]) <= 1e-6
    count = len(order) - 1 if alike or without >= score else int(enough.argmax())
    return some[count], float(scores[count])


def embed_texts(model, input_ids, attention_mask=None, sentence_ids=None, groups: Sequence[int] | None = None):
    """Embeds texts for both scales.

    Args:
        input_ids, attention_mask, sentence_ids: (rows, tokens), of the processor.
        groups: (rows,) which text a row belongs to, from 0 on; the embeddings of its rows are averaged.

    Returns:
        (texts, dim) L2-normalised, compared with rhythm embeddings; (texts, dim), compared with beats.
    """
    with torch.no_grad():
        hidden_states, cls_state = model._encode_text(input_ids, attention_mask)
        embeds = F.normalize(model.text_projection(cls_state).float(), dim=-1)
        if sentence_ids is None:
            real = input_ids != model.config.pad_token_id if attention_mask is None else attention_mask.bool()
        else:
            real = sentence_ids >= 0
        one_sentence = torch.where(real, 0, -1)
        sentences = model._embed_sentences(hidden_states, one_sentence)[0][:, 0].float()
    if groups is None:
        return embeds, sentences
    belongs = F.one_hot(torch.as_tensor(groups, device=embeds.device)).T.to(embeds)
    belongs = belongs / belongs.sum(dim=1, keepdim=True)
    return F.normalize(belongs @ embeds, dim=-1), belongs @ sentences


def explain(
    model,
    input_values: torch.Tensor,
    input_ids: torch.Tensor,
    lead_mask: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    sentence_ids: torch.Tensor | None = None,
    texts: Sequence[str] | None = None,
    groups: Sequence[int] | None = None,
    method: str | None = None,
    beats: Sequence[float] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Evidence]:
    """Finds where one recording bears out each of some texts; see `MelpModel.explain`."""
    if groups is None and texts is not None and len(texts) != len(input_ids):
        raise ValueError(f"{len(texts)} texts for {len(input_ids)} rows of input_ids: give one for each, or groups.")
    device, method = model.device, method or METHOD
    input_ids, attention_mask, sentence_ids = (
        tensor if tensor is None else tensor.to(device) for tensor in (input_ids, attention_mask, sentence_ids)
    )
    text_embeds, sentence_embeds = embed_texts(model, input_ids, attention_mask, sentence_ids, groups)
    recording = Recording(model, input_values, lead_mask, text_embeds)
    maps = attribute(recording, sentence_embeds, method, beats)
    names = texts or [f"text {number}" for number in range(len(maps))]
    return [
        _evidence(recording, number, text, method, weights, beats, draws, seed)
        for number, (text, weights) in enumerate(zip(names, maps, strict=True))
    ]


def _evidence(recording: Recording, number: int, text: str, method: str, weights, beats, draws: int, seed: int):
    over_time = weights.sum(axis=0)
    shown = shown_frames(over_time)
    end = recording.values.shape[-1] / recording.rate
    spans = [
        (first * FRAME, min(last * FRAME, end), float(over_time[first:last].sum())) for first, last in runs(shown)
    ]
    by_beat = []
    if beats is not None and len(beats):
        bounds = beat_bounds(beats, recording.recorded.sum() * FRAME)
        middles = (np.arange(recording.frames) + 0.5) * FRAME
        for time, start, stop in zip(beats, bounds, bounds[1:], strict=False):
            weight = float(over_time[(middles >= start) & (middles < stop)].sum())
            by_beat.append({"time": float(time), "start": float(start), "end": float(stop), "weight": weight})
    present = recording.present.tolist()
    leads = {lead: float(row.sum()) for lead, row, there in zip(LEADS, weights, present, strict=False) if there}
    facts = measure_faithfulness(recording, shown, number, draws, seed)
    shares = weights.sum(axis=1)
    enough, in_leads = enough_leads(recording, shown, shares, number, facts["score"], facts["without"])
    shown_leads = [lead for lead, there in zip(LEADS, enough, strict=False) if there and shown.any()]
    facts = facts | {"without_in_leads": in_leads}
    return Evidence(text, facts["score"], method, spans, leads, by_beat, shown_leads, weights, facts)
