"""Rows to batches: what training and evaluation share between the stored rows and the model.

`MelpCollator` decodes rows to millivolts, `prepare_inputs` scales them and masks leads on the device, and
`TrainingBatches` and `StepBatches` say which rows belong to which optimizer step.
"""

import math

import numpy as np
import torch
from datasets import Dataset

from melp.data.stored import STORED_RATE
from processing_melp import CROPS, crop_start, scale_ecg, split_sentences
from signal_melp import LEAD_SUBSETS, LEADS, LIMB_LEADS, derive_limb_leads, printed_mask

# What training keeps. Any two limb leads give the other four, which the processor derives unless told not to: so I, II
# and V2 also stand here with them, as I and II do.
KEPT_LEADS = (LEAD_SUBSETS["limb leads"], (*LIMB_LEADS, "V2"), *list(LEAD_SUBSETS.values())[1:])
WINDOW = 50  # batches whose rows are sorted together: enough to save most padding, few enough to keep an epoch random


def decode(row: dict, signal: np.ndarray, crop: str = "first", derive: bool = True) -> np.ndarray:
    """Writes a stored row as millivolts into `signal` (12, samples) float32, in the model's lead order.

    Longer recordings are cropped (see `crop_start`), shorter ones padded at their end with 0 mV; limb leads that
    follow from two others are derived unless `derive` is false.

    Returns:
        (12,) bool: True for the leads that are present; the others are rows of zeros.

    Raises:
        ValueError: naming a record of another rate, without samples, or with a lead that is unknown or repeated.
    """
    if row.get("sampling_rate", STORED_RATE) != STORED_RATE or not row["signal"]:
        problem = f"is at {row['sampling_rate']} Hz" if row["signal"] else "has no samples"
        raise ValueError(f"record {row['record']!r} {problem}; a prepared folder holds {STORED_RATE} Hz: correct it.")
    stored = np.frombuffer(row["signal"], dtype="<i2").reshape(len(row["leads"]), -1)
    slack = stored.shape[1] - signal.shape[1]
    if slack > 0:
        start = crop_start(slack, crop)
        stored = stored[:, start : start + signal.shape[1]]
    gain = np.asarray(row["gain"], dtype=np.float32)[:, None]
    baseline = np.asarray(row["baseline"], dtype=np.float32)[:, None]
    if slack >= 0 and row["leads"] == list(LEADS):
        np.divide(np.subtract(stored, baseline, out=signal), gain, out=signal)
        return np.ones(len(LEADS), dtype=bool)
    try:
        rows = [LEADS.index(lead) for lead in row["leads"]]
    except ValueError as error:
        raise ValueError(f"record {row['record']!r} has an unknown lead: {', '.join(row['leads'])}.") from error
    if len(set(rows)) < len(rows):
        raise ValueError(f"record {row['record']!r} has a repeated lead: {', '.join(row['leads'])}.")
    present = np.zeros(len(LEADS), dtype=bool)
    signal[:], present[rows] = 0.0, True
    signal[rows, : stored.shape[1]] = (stored - baseline) / gain
    if derive and not present.all():
        varies = np.zeros(len(LEADS), dtype=bool)
        varies[rows] = stored.min(axis=1) != stored.max(axis=1)
        present = present | derive_limb_leads(signal[None, None], present[None], varies[None], list(LEADS))[0]
    return present


class MelpCollator:
    """Collates rows to `input_values` in millivolts (batch, 12, samples), `lead_mask` and the reports' ids.

    Args:
        processor: of the model; a feature extractor where there is no text.
        crop: which part of a longer recording, one of `CROPS`.
        text: whether to encode the reports.
        sentence_augmentation: the probability that a report is replaced by some of its sentences.

    Raises:
        ValueError: where the model reads another rate than `STORED_RATE`, or `crop` is unknown.
    """

    def __init__(self, processor, crop: str = "first", text: bool = True, sentence_augmentation: float = 0.0):
        extractor = getattr(processor, "feature_extractor", processor)
        if extractor.sampling_rate != STORED_RATE:
            raise ValueError(
                f"prepared folders hold {STORED_RATE} Hz, the model reads {extractor.sampling_rate:g} Hz: give its "
                f"configuration sampling_rate {STORED_RATE}."
            )
        if crop not in CROPS:
            raise ValueError(f"crop must be one of {', '.join(CROPS)}, not {crop!r}.")
        self.num_samples, self.derive = round(extractor.duration * STORED_RATE), extractor.derive_leads
        self.processor, self.crop, self.text = processor, crop, text
        self.sentence_augmentation = sentence_augmentation

    def __call__(self, rows: list[dict]) -> dict:
        signals = np.empty((len(rows), len(LEADS), self.num_samples), dtype=np.float32)
        present = [decode(row, signal, self.crop, self.derive) for row, signal in zip(rows, signals, strict=True)]
        batch = {"input_values": torch.from_numpy(signals), "lead_mask": torch.from_numpy(np.stack(present))}
        if self.text:
            reports = [row["report"] for row in rows]
            if self.sentence_augmentation:
                draws = torch.rand(len(rows)) < self.sentence_augmentation
                reports = [some_sentences(r) if draw else r for r, draw in zip(reports, draws, strict=True)]
            batch |= self.processor(text=reports, return_tensors="pt")
        return batch


def some_sentences(report: str) -> str:
    """Returns a random number of the report's sentences, at least one, in random order."""
    sentences = split_sentences(report)
    count = int(torch.randint(1, len(sentences) + 1, ()))
    return " ".join(sentences[index] for index in torch.randperm(len(sentences))[:count])


def prepare_inputs(
    batch: dict,
    device,
    scaling: str,
    lead_dropout: float = 0.0,
    lead_subsets: float = 0.0,
    printed_layout: float = 0.0,
) -> dict:
    """Moves a batch to the device and scales it; what is masked in training is drawn here, after scaling.

    Args:
        lead_dropout: the probability that a lead is zeroed, in recordings that neither of the next two has taken.
        lead_subsets: the share of recordings of which one of `KEPT_LEADS`, or a random one, is kept.
        printed_layout: the share of recordings cut to what a 3x4 print shows, half of them with a rhythm strip of II.
    """
    batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    batch["input_values"] = scale_ecg(batch["input_values"], batch["lead_mask"], scaling)
    if batch["lead_mask"].ndim == 3:  # of samples
        batch["lead_mask"] = batch["lead_mask"].any(dim=2)
    whole = batch["lead_mask"]
    if lead_dropout > 0:
        batch["lead_mask"] = drop_leads(whole, lead_dropout)
    if lead_subsets or printed_layout:
        draws = torch.rand(len(whole), device=whole.device)
        in_subset = draws < lead_subsets
        printed = ~in_subset & (draws < lead_subsets + printed_layout)
        masks = torch.where(in_subset[:, None], keep_subsets(whole), batch["lead_mask"])
        batch["lead_mask"] = torch.where(printed[:, None], whole, masks)
        batch["input_values"] = cut_to_print(batch["input_values"], printed)
    return batch


def augment_signals(signals: torch.Tensor, share: float) -> torch.Tensor:
    """Varies a share of (batch, leads, samples) in millivolts as recordings of one patient vary.

    Such a recording is shifted by up to 1.5 s (0 mV where nothing is left), its electrodes sit a little elsewhere, it
    is scaled by 0.9 to 1.1, given baseline wander up to 0.1 mV and noise up to 0.02 mV, and for up to 1.5 s all leads
    are 0 mV.
    """
    batch, _, samples = signals.shape
    changed = torch.rand(batch, 1, 1) < share
    time = torch.arange(samples) / STORED_RATE
    shift = (torch.rand(batch) * 2 - 1) * 1.5 * STORED_RATE
    places = torch.arange(samples) - shift.long()[:, None]
    inside = (places >= 0) & (places < samples)
    start, length = torch.rand(batch, 1) * time[-1], torch.rand(batch, 1) * 1.5
    inside &= (time < start) | (time > start + length)
    places = places.clamp(0, samples - 1)[:, None].expand_as(signals)
    moved = move_electrodes(signals).gather(2, places) * inside[:, None]
    frequency, phase = 0.1 + 0.4 * torch.rand(batch, 1, 1), 6.3 * torch.rand(signals.shape[:2])[..., None]
    wander = 0.1 * torch.rand(batch, 1, 1) * torch.sin(6.3 * frequency * time + phase)
    noise = 0.02 * torch.rand(batch, 1, 1) * torch.randn(signals.shape)
    scale = torch.exp(0.1 * (2 * torch.rand(batch, 1, 1) - 1))
    return torch.where(changed, scale * moved + wander + noise, signals)


def move_electrodes(signals: torch.Tensor) -> torch.Tensor:
    """Turns the frontal axis of (batch, 12, samples) by up to 8 degrees, and moves each chest electrode by up to a
    fifth of the way to a neighbour; a recording that lacks a lead stays as it is.

    Turned vectorcardiograms as views of one heart: Gopal et al., "3KG" (ML4H 2021), with larger angles.
    """
    whole = signals.ne(0).any(2, keepdim=True).all(1, keepdim=True)
    angle = math.radians(8) * (2 * torch.rand(len(signals), 1) - 1)
    first, second = signals[:, LEADS.index("I")], signals[:, LEADS.index("II")]
    down = (2 * second - first) / math.sqrt(3)  # the frontal vector has the components I and this
    one = angle.cos() * first - angle.sin() * down
    two = one / 2 + math.sqrt(3) / 2 * (angle.sin() * first + angle.cos() * down)
    limb = [share_i * one + share_ii * two for share_i, share_ii in map(LIMB_LEADS.get, LEADS[: len(LIMB_LEADS)])]
    chest = signals[:, len(limb) :]
    way = 0.2 * (2 * torch.rand(*chest.shape[:2], 1) - 1)
    before, after = (torch.cat(ends, dim=1) for ends in ((chest[:, :1], chest[:, :-1]), (chest[:, 1:], chest[:, -1:])))
    chest = chest + way.abs() * (torch.where(way > 0, after, before) - chest)
    return torch.where(whole, torch.cat([torch.stack(limb, 1), chest], 1), signals)


def drop_leads(lead_mask: torch.Tensor, probability: float) -> torch.Tensor:
    """Masks leads at random in (batch, leads); a record that would lose all of them keeps all of them."""
    return _unless_empty(lead_mask & (torch.rand(lead_mask.shape, device=lead_mask.device) >= probability), lead_mask)


def keep_subsets(lead_mask: torch.Tensor) -> torch.Tensor:
    """Keeps of each record in (batch, leads) one of `KEPT_LEADS`, or each lead with a probability of 0.5."""
    subsets = torch.tensor([[lead in subset for lead in LEADS] for subset in KEPT_LEADS], device=lead_mask.device)
    choices = torch.randint(len(subsets) + 1, lead_mask.shape[:1], device=lead_mask.device)
    random = torch.rand(lead_mask.shape, device=lead_mask.device) < 0.5
    kept = torch.where((choices == len(subsets))[:, None], random, subsets[choices.clamp(max=len(subsets) - 1)])
    return _unless_empty(lead_mask & kept, lead_mask)


def _unless_empty(kept: torch.Tensor, lead_mask: torch.Tensor) -> torch.Tensor:
    return torch.where(kept.any(dim=1, keepdim=True), kept, lead_mask)


def cut_to_print(input_values: torch.Tensor, printed: torch.Tensor) -> torch.Tensor:
    """Zeroes what a 3x4 print lacks in those of scaled (batch, leads, samples) that are `printed`, (batch,) bool.

    About every second one keeps all of II, as a rhythm strip.
    """
    shape = input_values.shape[1:]
    masks = [np.ones(shape, dtype=bool), *(printed_mask(LEADS, shape[1], strips) for strips in ((), ("II",)))]
    choices = torch.randint(1, len(masks), printed.shape, device=printed.device) * printed
    return input_values * torch.from_numpy(np.stack(masks)).to(input_values.device)[choices]


class TrainingBatches(torch.utils.data.Dataset):
    """Collated batches by optimizer step: rows in a new order each epoch, the same for any number of processes.

    Batch `step` follows from the seed alone, including all that its collate function draws (crops, sentences, masks).
    So a run resumes at any step, any number of loader processes gives the same, and two training processes with batch
    n see the rows that one sees with 2n. The rows that do not fill an epoch's last batch are left out of it, since a
    contrastive loss over fewer pairs is another loss.

    Args:
        parts: of each source that the rows are joined from its number of rows, and how many of an epoch's rows it
            gives (together as many as there are). A small source comes round several times in an epoch.
    """

    def __init__(
        self,
        rows: Dataset,
        collate,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        parts: list[tuple[int, int]] | None = None,
    ):
        self.global_batch, self.batch_size = batch_size * world, batch_size
        if len(rows) < self.global_batch:
            raise ValueError(
                f"{len(rows)} training rows do not fill one batch of {self.global_batch} ({batch_size} per process): "
                "lower --batch-size or give more data."
            )
        self.rows, self.collate, self.seed, self.rank, self.world, self.parts = rows, collate, seed, rank, world, parts
        self.steps_per_epoch = len(rows) // self.global_batch
        self._order = (-1, torch.empty(0))  # epoch and its permutation

    def order(self, epoch: int) -> torch.Tensor:
        """Returns the rows of an epoch, (rows,): each global batch takes the next ones."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        if self.parts is None:
            return torch.randperm(len(self.rows), generator=generator)
        chosen, first = [], 0
        for size, count in self.parts:
            chosen.append(first + self._next_rows(size, epoch * count, count))
            first += size
        rows = torch.cat(chosen)
        return rows[torch.randperm(len(rows), generator=generator)]

    def _next_rows(self, size: int, start: int, count: int) -> torch.Tensor:
        """Returns `count` rows of a source from place `start` of its endless order, one permutation after another."""
        if count == 0:
            return torch.empty(0, dtype=torch.long)
        rounds = range(start // size, (start + count - 1) // size + 1)
        generators = (torch.Generator().manual_seed(self.seed + number) for number in rounds)
        order = torch.cat([torch.randperm(size, generator=generator) for generator in generators])
        return order[start - rounds.start * size :][:count]

    def global_indices(self, step: int) -> list[int]:
        """Returns the rows of a step, one process after the other."""
        epoch, offset = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self.order(epoch))
        return self._order[1][offset * self.global_batch :][: self.global_batch].tolist()

    def indices(self, step: int) -> list[int]:
        """Returns the rows of a step on this process."""
        return self.global_indices(step)[self.rank * self.batch_size :][: self.batch_size]

    def __getitem__(self, step: int) -> dict:
        rows = self.rows.__getitems__(self.indices(step))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.seed << 32) + step * self.world + self.rank)
            return self.collate(rows)


class StepBatches(TrainingBatches):
    """The batches of one optimizer step: `[step]` is a list of collated micro-batches to accumulate.

    With `lengths` (one per row) reports of similar length come together: rows are sorted by length within stretches
    of 50 batches of the epoch's order, and the batches of a stretch come in random order. The rows of a step stay the
    same for any number of processes.
    """

    def __init__(
        self, rows, collate, batch_size, seed, rank=0, world=1, accumulation_steps=1, lengths=None, parts=None
    ):
        super().__init__(rows, self.micro_batches, batch_size * accumulation_steps, seed, rank, world, parts)
        self.collate_rows, self.micro_batch_size = collate, batch_size
        self.lengths = None if lengths is None else torch.as_tensor(lengths)

    def micro_batches(self, rows: list[dict]) -> list[dict]:
        size = self.micro_batch_size
        return [self.collate_rows(rows[first : first + size]) for first in range(0, len(rows), size)]

    def order(self, epoch: int) -> torch.Tensor:
        order = super().order(epoch)
        if self.lengths is None:
            return order
        generator = torch.Generator().manual_seed(self.seed + epoch)
        whole = self.steps_per_epoch * self.global_batch  # what is left over belongs to no batch
        batches = []
        for stretch in order[:whole].split(WINDOW * self.global_batch):
            stretch = stretch[self.lengths[stretch].argsort(stable=True)].view(-1, self.global_batch)
            batches.append(stretch[torch.randperm(len(stretch), generator=generator)])
        return torch.cat(batches).flatten()
