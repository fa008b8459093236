"""Answers what the app is asked, as plain JSON types; it knows neither pages nor Gradio."""

import copy
import itertools
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from findings_melp import Finding, embed_prompts
from melp.app.examples import simulated_block
from melp.app.kept import Recording
from melp.app.limits import Limits, Refusal
from melp.app.reader import Reader
from melp.evaluation.prompts import PROMPTS, load_yaml
from melp.notice import NOTICE
from melp.predict.predictor import Predictor
from melp.predict.reading import Item, Reading
from melp.search.index import Index, open_index
from modeling_melp import MelpModel

SEARCHED = 12  # hits
WORDS = 300  # letters of a query
QUALITY = (
    *("sampling_rate", "seconds", "leads", "derived_leads", "masked_leads", "flat_leads", "done", "warnings"),
    *("nan_share", "clipped_share", "limb_error_mv", "peak_to_peak_mv", "suspected_swap"),
)
VERDICTS = ("present", "cannot say", "absent")


@dataclass
class Settings:
    """Holds what the app is started with, see app.py."""

    model: str
    index: Path | None = None
    device: str | None = None
    limits: Limits = field(default_factory=Limits)


class Engine:
    """A model, its reader and an index.

    Raises:
        ValueError: for a model that is not a whole one, an index of another model, or a device that is not there.
    """

    def __init__(self, settings: Settings, reader: Reader | None = None):
        self.limits = settings.limits
        self.predictor = Predictor(settings.model, device_of(settings.device), embeddings=True, key=os.urandom(16))
        self.model, self.processor = self.predictor.model, self.predictor.processor
        if not isinstance(self.model, MelpModel):
            raise ValueError(f"{settings.model} has no text tower: the app needs a whole MELP model.")
        self.reader = reader or Reader(self.limits)
        self.reader.extractor = self.predictor.extractor
        # Explaining may change how attention is computed while it looks: in modules of its own, over the same weights.
        weights = {id(tensor): tensor for tensor in itertools.chain(self.model.parameters(), self.model.buffers())}
        self._explained, self._explaining = copy.deepcopy(self.model, weights), threading.Lock()
        self._ours = load_yaml(PROMPTS)
        self._embedded = lru_cache(maxsize=512)(self._embed)
        self.index: Index | None = None
        if settings.index is not None:
            self.index = open_index(settings.index)
            commit = self.index.table["commit"][0].as_py()
            if commit != self.predictor.commit:
                raise ValueError(
                    f"{settings.index} was made with another model ({commit}, not {self.predictor.commit})."
                )

    @property
    def name(self) -> str:
        """Returns the model's name without the place where it lies."""
        return Path(self.predictor.source).name or "MELP"

    # --------------------------------------------------------------------------------------------------------- reading

    def read(self, folder: Path, reading: Reading) -> Iterator[Recording | tuple[str, str]]:
        """Yields the recordings of a folder as they are read, (name, reason) for those that cannot be read.

        Raises:
            Refusal: where there is none, or too much.
        """
        with self.reader.process() as process:
            paths = process.list(folder)
            ends = time.monotonic() + self.limits.batch_seconds
            for path in paths:
                name = str(Path(path).relative_to(folder)).removesuffix(".gz").removesuffix(".hea")
                if time.monotonic() > ends:
                    yield name, f"left out: the batch took longer than {self.limits.batch_seconds:g} s"
                    continue
                item = process.read(path, reading)
                yield (name, item.error) if item.error else self._recording(item, name)

    def count(self, folder: Path) -> int:
        """Returns how many recordings a folder has, after unpacking."""
        with self.reader.process() as process:
            return len(process.list(folder))

    def simulated(self, record: str) -> Recording:
        """Returns one of the examples."""
        block = simulated_block(record)
        inputs = self.predictor.extractor(block, quality=True)
        item = Item(
            block.names[0], values=inputs["input_values"], lead_mask=inputs["lead_mask"], starts=[0.0],
            quality=inputs["quality"][0], blocks=[block],
        )  # fmt: skip
        return replace(self._recording(item, block.names[0]), simulated=True)

    def _recording(self, item: Item, name: str) -> Recording:
        values, mask = item.values[:1], item.lead_mask[:1]
        item.values, item.lead_mask, item.starts = values, mask, item.starts[:1]
        ((_, (row,)),) = self.predictor.predict([item])
        row |= {"record": name, "path": name, "model": self.name}
        return Recording(name, values, mask, item.blocks[0], row, item.identifiers)

    # --------------------------------------------------------------------------------------------------------- answers

    def answer(self, recording: Recording, identifiers: bool = False) -> dict:
        """Returns what was found in a recording; `findings` is as the zero-shot pipeline has it, with more keys.

        `left_out` are those that cannot be told from recordings of its `condition`.
        """
        row = recording.row
        known = {finding.name: finding for finding in self.predictor.findings}
        rows = zip(row["findings"], row["similarities"], strict=True)
        answer = {
            "notice": NOTICE,
            "record": recording.name,
            "simulated": recording.simulated,
            "findings": [self._finding(known[name], score, recording) for name, score in rows],
            "condition": row["condition"],
            "left_out": row["left_out"],
            "calibration": self.predictor.calibration,
            "quality": {name: row[name] for name in QUALITY},
            "model": self.name,
            "commit": self.predictor.commit,
        }
        return answer | ({"identifiers": dict(recording.identifiers)} if identifiers else {})

    def _finding(self, finding: Finding, score: float, recording: Recording) -> dict:
        told = finding.under(recording.row.get("condition")) or Finding(finding.name, finding.prompts)
        row = {"label": finding.name, "score": score, "probability": told.probability(score)}
        row["verdict"] = told.verdict(score)
        row["rests_on"] = rests_on(finding, recording)
        return row

    def ask(self, recording: Recording, words: str) -> list[dict]:
        """Returns how well findings in words, with commas between them, describe a recording, best first.

        Raises:
            Refusal: for no words, or too many.
        """
        findings = self._named(words)
        embedding = torch.from_numpy(recording.row["embedding"])
        scores = [float(embedding @ self._embedded(finding.prompts)) for finding in findings]
        rows = [self._finding(finding, score, recording) for finding, score in zip(findings, scores, strict=True)]
        key = "score" if any(row["probability"] is None for row in rows) else "probability"
        return sorted(rows, key=lambda row: -row[key])

    def _named(self, words: str) -> list[Finding]:
        if not isinstance(words, str) or not words.strip(" ,."):
            raise Refusal("type a finding in words, as in: atrial fibrillation.")
        if len(words) > WORDS:
            raise Refusal(f"these are {len(words)} letters; ask for less at a time ({WORDS}).")
        known = {finding.name.lower(): finding for finding in self.predictor.findings}
        names = [name.strip() for name in words.split(",") if name.strip()]
        fresh = [name for name in names if name.lower() not in known]
        ours = choose_findings_in_words(fresh, self._ours)
        return [known.get(name.lower()) or ours[name] for name in names]

    def _embed(self, prompts: tuple[str, ...]) -> torch.Tensor:
        return embed_prompts(self.model, self.processor, [prompts])[0].cpu()

    @torch.inference_mode()
    def draft(self, recording: Recording) -> dict:
        """Returns a drafted report, as the ecg-to-text pipeline has it."""
        device, dtype = self.model.device, self.model.dtype
        values = torch.from_numpy(recording.values).to(device, dtype)
        ids = self.model.generate(
            input_values=values, lead_mask=torch.from_numpy(recording.lead_mask).to(device), do_sample=False
        )
        return {"generated_text": self.processor.batch_decode(ids, skip_special_tokens=True)[0]}

    def evidence(self, recording: Recording, text: str) -> dict:
        """Returns where the recording bears out a finding or a sentence, and whether that is faithful.

        Raises:
            Refusal: for no text, or too much.
        """
        from melp.explain import explain_recording

        texts = {finding.name: list(finding.prompts) for finding in self._named(text.replace(",", " "))}
        inputs = {"input_values": recording.values, "lead_mask": recording.lead_mask}
        with self._explaining:
            (evidence,) = explain_recording(self._explained, self.processor, inputs, texts)
        return evidence.to_json()

    # --------------------------------------------------------------------------------------------- compare and search

    def compare(self, first: Recording, second: Recording) -> dict:
        """Returns by how much findings changed, and by how much the second is to be moved so that first beats align.

        Where no beat was detected in one of the two, that is None. `left_out` cannot be told from one of the two.
        """
        rows, change = [], "probability"
        old, new = self.answer(first), self.answer(second)
        before = {row["label"]: row for row in old["findings"]}
        for row in new["findings"]:
            if row["label"] not in before:
                continue
            pair = {"label": row["label"], "first": before[row["label"]], "second": row}
            if None in (pair["first"]["probability"], row["probability"]):
                change = "score"
            rows.append(pair)
        for row in rows:
            row["change"] = row["second"][change] - row["first"][change]
        rows.sort(key=lambda row: -abs(row["change"]))
        beats = [find_beats_of(recording) for recording in (first, second)]
        shift = align((first, second), beats) if all(beats) else None
        return {
            "notice": NOTICE,
            "records": [first.name, second.name],
            "change_of": change,
            "findings": rows,
            "left_out": list(dict.fromkeys([*old["left_out"], *new["left_out"]])),
            "shift_s": shift,
            "heart_rates": [rate_of(times) for times in beats],
        }

    def search(self, query: str | Recording, count: int = SEARCHED) -> list[dict]:
        """Returns the nearest recordings of the index, each patient once; `row` is theirs in the index.

        Raises:
            Refusal: where there is no index, or the query is empty.
        """
        if self.index is None:
            raise Refusal("there is no archive to search: start the app with --index.")
        if isinstance(query, Recording):
            embedding = query.row["embedding"]
        else:
            (finding, *_) = self._named(query.replace(",", " "))
            embedding = self._embedded(finding.prompts).numpy()
        return self.index.hits(np.asarray(embedding, dtype=np.float32), max(1, min(int(count), 50)))

    def open_hit(self, hit: dict) -> Recording:
        """Reads a hit again.

        Raises:
            Refusal: where its file is no longer there or readable.
        """
        with self.reader.process() as process:
            item = process.read(hit["path"], self.index.reading_of(hit))
        if item.error:
            raise Refusal(f"{hit['record']}: {item.error}")
        # The archive's names and dates are not for every visitor who ticks a box.
        return replace(self._recording(item, hit["record"]), identifiers={})


def device_of(name: str | None) -> torch.device:
    """Returns the device of a name; without one, CUDA's where there is one.

    Raises:
        ValueError: for a device that torch does not know or have.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # whichever torch raises, by how it was built
        raise ValueError(f"--device {name}: {str(error).partition(chr(10))[0]}") from None
    return device


def choose_findings_in_words(names: list[str], known: dict) -> dict[str, Finding]:
    """Returns a finding per name: with our prompts where we have some, else one that its name describes."""
    from findings_melp import findings_of
    from melp.predict.predictor import DEFAULT_LABEL_SET

    if not names:
        return {}
    ours = {name.lower(): texts for name, texts in known[DEFAULT_LABEL_SET].items()}
    findings = findings_of({name: ours.get(name.lower()) for name in names}, {})
    return {finding.name: finding for finding in findings}


def rests_on(finding: Finding, recording: Recording) -> dict | None:
    """Returns what calibration measured of a finding with leads like these: AUROC, interval, positives; or None."""
    condition = recording.row.get("condition")
    measured = finding.passport.get(condition, {})
    if "auroc" not in measured:
        return None
    return {"setting": condition, **{name: measured.get(name) for name in ("auroc", "low", "high", "positives")}}


def find_beats_of(recording: Recording) -> list[float]:
    """Returns the R peaks of a recording in s."""
    from melp.explain.beats import find_beats
    from signal_melp import LEADS

    block = recording.block
    signal, present = np.zeros((len(LEADS), block.signal.shape[-1])), np.zeros(len(LEADS), dtype=bool)
    for row, lead in zip(block.signal[0], block.leads, strict=True):
        signal[LEADS.index(lead)], present[LEADS.index(lead)] = np.nan_to_num(row), True
    return find_beats(signal, block.sampling_rate, present)


def align(recordings: tuple[Recording, Recording], beats: list[list[float]], rate: float = 100.0) -> float:
    """Returns by how many seconds the second of two recordings is to be moved, so that their first beats coincide.

    A beat is marked somewhere in its complex, elsewhere in a wide one: the two complexes are matched by how steep they
    are, `rate` times a second, up to 0.1 s about the marks. What lies within 0.15 s of the beginning may be cut off.
    """
    at = [next((beat for beat in marked if beat > 0.15), marked[0]) for marked in beats]
    slopes = [np.pad(slopes_of(recording, rate), round(rate)) for recording in recordings]
    (one, other), around = (round((beat + 1) * rate) for beat in at), round(0.15 * rate)
    window = slopes[0][one - around : one + around + 1]

    def likeness(lag: int) -> float:
        return float(window @ slopes[1][other + lag - around : other + lag + around + 1])

    lag = max(sorted(range(-round(0.1 * rate), round(0.1 * rate) + 1), key=abs), key=likeness)
    return round((one - other - lag) / rate, 2)


def slopes_of(recording: Recording, rate: float) -> np.ndarray:
    """Returns how steep a recording is at each moment, over all leads, at a rate in Hz."""
    steep = np.abs(np.diff(np.nan_to_num(recording.block.signal[0]), axis=1)).sum(axis=0)
    step = recording.block.sampling_rate / rate
    bounds = (np.arange(int(len(steep) / step)) * step).astype(int)
    return np.add.reduceat(steep, bounds)


def rate_of(beats: list[float]) -> float | None:
    """Returns the mean heart rate per minute."""
    return round(60 * (len(beats) - 1) / (beats[-1] - beats[0]), 1) if len(beats) > 1 else None
