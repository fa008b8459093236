"""Findings that a model is asked for: the texts that describe them, and what calibration knows of their similarities.

A model folder may hold `findings.json`, which `python -m melp.calibrate` writes from labelled recordings:

    {"findings": {"atrial fibrillation": {"prompts": ["atrial fibrillation."], "slope": 21.3, "intercept": -4.2,
                                          "coverage": 0.9, "absent_below": 0.03, "present_above": 0.4, ...}}}

The probability of a finding is sigmoid(slope * similarity + intercept). Below one limit it is absent, above the other
present, between them the model cannot say. Without all this there are similarities only: a softmax over findings that
can occur together would mean nothing. Further keys are for others.
"""

import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from transformers.utils import cached_file, logging

try:
    from .signal_melp import LEAD_SUBSETS, LEADS, LIMB_LEADS
except ImportError:
    if __package__:  # remote code
        raise
    from signal_melp import LEAD_SUBSETS, LEADS, LIMB_LEADS

logger = logging.get_logger(__name__)

FINDINGS = "findings.json"
NOT_CALIBRATED = "not calibrated: similarities, not probabilities"
PRESENT, ABSENT, CANNOT_SAY = "present", "absent", "cannot say"
NUMBERS = ("slope", "intercept")
LIMITS = ("absent_below", "present_above")
SIGNALS = ("scaling", "sampling_rate", "duration", "num_leads")  # fields of the configuration, on which they rest

# -------------------------------------------------------------------------------------------------- kinds of recording

LIMB, ALL = frozenset(LIMB_LEADS), frozenset(LEADS)
WHOLE = "12 leads"
# What the passport of a finding is measured on: leads, seconds, layout. Limb leads that follow from two others are
# derived (by the processor), so that I and II are as good as all six: all subsets but the single leads have these.
CONDITIONS = {
    WHOLE: (ALL, 10.0, None),
    **{
        name: (LIMB.union(leads) if len(leads) > 1 else frozenset(leads), 10.0, None)
        for name, leads in LEAD_SUBSETS.items()
    },
    "5 s": (ALL, 5.0, None),
    "2.5 s": (ALL, 2.5, None),
    "3x4": (ALL, 10.0, "3x4"),
    "3x4+II": (ALL, 10.0, "3x4+II"),
}
UNTOLD = 0.7  # a finding is left out where its AUROC, at the lower end of the interval, is not above this


def condition_of(report: Mapping, leads: Iterable[str], layout: str | None = None) -> str | None:
    """Returns which of `CONDITIONS` a recording meets; None for one of a kind that is not measured.

    What lasts longer than a condition's time, and not as long as the next one's, is of that condition. A recording
    with a flat lead, or an implausible amplitude (see `ecg_quality`), is of none.

    Args:
        report: the processor's (`quality=True`).
        leads: that the model reads.
        layout: of a print, as the processor takes it.
    """
    if layout is None and report["nan_share"] > 0.05:
        return None
    there = frozenset(leads) - set(report["masked_leads"])
    if report["implausible_amplitude"] or not there.isdisjoint(report["flat_leads"]):
        return None
    fitting = {
        name: length
        for name, (wanted, length, printed) in CONDITIONS.items()
        if wanted == there and printed == layout and (printed or report["seconds"] >= 0.95 * length)
    }
    return max(fitting, key=fitting.get, default=None)  # the first of equals: limb leads, not I and II


# ------------------------------------------------------------------------------------------------------------- finding


@dataclass(frozen=True)
class Finding:
    """A finding by its texts; the numbers are None where it is not calibrated.

    Attributes:
        slope, intercept: of the probability's logistic curve over the similarity.
        absent_below, present_above: probabilities, the limits of a verdict, which hold for `coverage` of the patients
            who have the finding, and of those who do not.
        passport: per condition (see `CONDITIONS`) AUROC with interval (`auroc`, `low`, `high`), and the numbers above
            for recordings of that kind.
    """

    name: str
    prompts: tuple[str, ...]
    slope: float | None = None
    intercept: float | None = None
    absent_below: float | None = None
    present_above: float | None = None
    coverage: float | None = None
    passport: Mapping[str, Mapping] = field(default_factory=dict, compare=False)

    def probability(self, similarity: float) -> float | None:
        """Returns the probability of the finding at a similarity (cosine), None where it is not calibrated."""
        if self.slope is None or self.intercept is None:
            return None
        logit = max(-700.0, min(700.0, self.slope * similarity + self.intercept))
        return 1 / (1 + math.exp(-logit))

    def verdict(self, similarity: float) -> str | None:
        """Returns "present", "absent" or "cannot say", None where there are no limits."""
        probability = self.probability(similarity)
        if probability is None or self.absent_below is None or self.present_above is None:
            return None
        if probability < self.absent_below:
            return ABSENT
        return PRESENT if probability > self.present_above else CANNOT_SAY

    def under(self, condition: str | None) -> "Finding | None":
        """Returns the finding as it can be told from recordings of a condition; None where it cannot.

        It cannot where the passport's AUROC is not surely above 0.7. Where a condition was not measured, or nothing is
        calibrated for it, similarities are left.
        """
        if condition == WHOLE or self.slope is None:
            return self
        entry = self.passport.get(condition, {})
        if "low" in entry and not entry["low"] > UNTOLD:
            return None
        return replace(self, **{name: entry.get(name) for name in (*NUMBERS, *LIMITS)})


def read_findings(model: str, **where) -> dict[str, Finding]:
    """Reads the calibrated findings of a model folder or Hub id; none where the model is not calibrated.

    Args:
        where: `revision`, `token`, `cache_dir` and the like, as `from_pretrained` takes them.

    Raises:
        ValueError: naming the file and the finding that is malformed.
    """
    path = findings_file(model, **where)
    if path is None:
        return {}
    entries = read_file(path)["findings"].items()
    return {name: _finding(name, entry, path) for name, entry in entries}


def findings_file(model: str, **where) -> str | None:
    """Returns the path of a model's `findings.json`, downloaded where need be; None where it has none."""
    return cached_file(model, FINDINGS, _raise_exceptions_for_missing_entries=False, **where)


def read_file(path) -> dict:
    """Reads a `findings.json` as it is; raises ValueError naming it where it is none."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        content["findings"].items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path} is malformed: it needs an object `findings`; calibrate the model again") from None
    return content


def _finding(name: str, entry, path) -> Finding:
    values = entry if isinstance(entry, dict) else {}
    prompts, passport = values.get("prompts"), values.get("passport", {})
    texts = isinstance(prompts, list) and prompts and all(isinstance(text, str) and text.strip() for text in prompts)
    if not texts or not _numbers_are_right(values):
        raise ValueError(f"{path}: {name!r} needs prompts, and slope and intercept as numbers; calibrate again")
    rows = passport.values() if isinstance(passport, dict) else [None]
    if not all(isinstance(row, dict) and _is_finite(row.get("low")) and _numbers_are_right(row) for row in rows):
        raise ValueError(f"{path}: the passport of {name!r} is malformed; calibrate again")
    numbers = {key: values.get(key) for key in (*NUMBERS, *LIMITS, "coverage")}
    return Finding(name, tuple(prompts), **numbers, passport=passport)


def _numbers_are_right(values: Mapping) -> bool:
    """Tells whether slope and intercept are both there or both not, and limits at most where they are."""
    curve, limits = ([values.get(key) for key in keys] for keys in (NUMBERS, LIMITS))
    whole = curve == [None, None] or all(_is_finite(number) for number in curve)
    probabilities = all(_is_finite(number) and 0 <= number <= 1 for number in limits)
    return whole and (limits == [None, None] or (probabilities and limits[0] <= limits[1] and curve != [None, None]))


def _is_finite(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def findings_of(labels: str | Sequence[str] | Mapping[str, Sequence[str]], calibrated: dict) -> list[Finding]:
    """Returns the findings that labels name: the model's calibrated ones, or new ones that a label describes.

    Args:
        labels: a list of labels, a text with commas between them, or label -> its prompts.
        calibrated: of `read_findings`, by names whose case does not matter; own prompts of a label make another
            finding, which is not calibrated.

    Raises:
        ValueError: where there are no labels, or a label or prompt is empty or no text.
    """
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",")]
    texts = dict(labels) if isinstance(labels, Mapping) else dict.fromkeys(labels)
    by_name = {name.lower(): finding for name, finding in calibrated.items()}
    findings = []
    for label, prompts in texts.items():
        prompts = [prompts] if isinstance(prompts, str) else prompts
        given = [label, *(prompts or ())]
        if not all(isinstance(text, str) and text.strip() for text in given):
            raise ValueError(f"finding {label!r}: a label and its prompts must be texts that are not empty")
        known = calibrated.get(label) or by_name.get(label.lower())
        if known is not None and tuple(prompts or known.prompts) == known.prompts:
            findings.append(replace(known, name=label))
        else:
            findings.append(Finding(label, tuple(prompts or [report_sentence(label)])))
    if not findings:
        raise ValueError("name at least one finding")
    return findings


def report_sentence(label: str) -> str:
    """Returns a label as a report has it: in lower case, with a full stop."""
    return f"{label.strip().lower().rstrip('.')}."


@torch.inference_mode()
def embed_prompts(model, processor, prompts: Sequence[Sequence[str]]) -> torch.Tensor:
    """Returns (classes, projection_dim) float32: the mean of each class's normalised prompts, normalised again."""
    rows = []
    for texts in prompts:
        inputs = processor(text=list(texts), return_tensors="pt").to(model.device)
        features = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output.float()
        rows.append(F.normalize(features.mean(dim=0), dim=-1))
    return torch.stack(rows)


# ----------------------------------------------------------------------------------------- calibration and its weights


@torch.inference_mode()
def weights_mark(model) -> list[float]:
    """Returns 16 numbers by which the weights that a calibration was made with are known again.

    They are the first ones of the embeddings of a fixed signal and of a fixed text: in bfloat16 and on another device
    nearly the same, after training others.
    """
    ecg = model.config.ecg_config
    time = torch.arange(round(ecg.sampling_rate * ecg.duration), device=model.device) / ecg.sampling_rate
    gains = torch.linspace(-0.5, 1.0, ecg.num_leads, device=model.device)
    signal = gains[:, None] * torch.exp(-(((time % 0.8) - 0.4) ** 2) / 0.001) + 0.1 * torch.sin(5 * time)
    tokens = torch.arange(1, 9, device=model.device)[None] % model.config.text_config.vocab_size
    training = model.training
    model.eval()
    rows = model.get_ecg_features(signal[None].to(model.dtype)), model.get_text_features(tokens, tokens.new_ones(1, 8))
    model.train(training)
    return [round(x, 4) for row in rows for x in F.normalize(row.pooler_output[0].float(), dim=-1)[:8].tolist()]


def signal_settings(model) -> dict:
    """Returns how a model's recordings are prepared; a processor that contradicts its configuration is refused."""
    return {name: getattr(model.config.ecg_config, name) for name in SIGNALS}


def _difference(model, path) -> str | None:
    """Returns what a `findings.json` was made with that is not the model's; what it does not state is trusted."""
    content = read_file(path)
    stated, mark = content.get("signals", {}), content.get("weights")
    for name, value in signal_settings(model).items():
        if not isinstance(stated, dict) or stated.get(name, value) != value:
            return f"another {name} than the model's {value!r}"
    if mark is None:
        return None
    is_mark = isinstance(mark, list) and len(mark) == 16 and all(map(_is_finite, mark))
    if is_mark and max(abs(a - b) for a, b in zip(mark, weights_mark(model), strict=True)) < 0.02:
        return None
    return "other weights than the model's"


def check_calibration(model, path):
    """Raises ValueError where a `findings.json` was made with other weights or signals than the model's."""
    if path is not None and (difference := _difference(model, path)):
        raise ValueError(
            f"{path} was made with {difference}: its probabilities and verdicts would be wrong. Calibrate again "
            "(python -m melp.calibrate), or remove it."
        )


def carry_findings(model, folder):
    """Copies the `findings.json` of where a model came from into a folder it is saved to, unless it was trained since.

    One that lies in the folder and is of another model is removed.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return  # a training over processes has changed the weights; and they may be in parts
    target = os.path.join(folder, FINDINGS)
    origin = model.name_or_path and os.path.join(model.name_or_path, FINDINGS)
    if model.name_or_path and not os.path.isdir(model.name_or_path):
        origin = findings_file(model.name_or_path, revision=getattr(model.config, "_commit_hash", None))
    if not origin or not os.path.isfile(origin):
        return
    if difference := _difference(model, origin):
        logger.warning(f"{FINDINGS} is left behind, as it was made with {difference}: calibrate again")
        if os.path.isfile(target):
            os.remove(target)
    elif os.path.abspath(origin) != os.path.abspath(target):
        os.makedirs(folder, exist_ok=True)
        shutil.copyfile(origin, target)
