"""Findings that a model is asked for: the texts that describe them, and probabilities where the model is calibrated.

A model folder may hold `findings.json`, written by calibration on labelled recordings:

    {"findings": {"atrial fibrillation": {"prompts": ["atrial fibrillation."], "slope": 21.3, "intercept": -4.2}}}

The probability of a finding is sigmoid(slope * similarity + intercept). Without it there are similarities only: a
softmax over findings that can occur together would mean nothing. Further keys are for others.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers.utils import cached_file

FINDINGS = "findings.json"
NOT_CALIBRATED = "not calibrated: similarities, not probabilities"


@dataclass(frozen=True)
class Finding:
    """A finding by its texts; `slope` and `intercept` are None where it is not calibrated."""

    name: str
    prompts: tuple[str, ...]
    slope: float | None = None
    intercept: float | None = None

    def probability(self, similarity: float) -> float | None:
        """Returns the probability of the finding at a similarity (cosine), None where it is not calibrated."""
        if self.slope is None or self.intercept is None:
            return None
        logit = max(-700.0, min(700.0, self.slope * similarity + self.intercept))
        return 1 / (1 + math.exp(-logit))


def read_findings(model: str, **where) -> dict[str, Finding]:
    """Reads the calibrated findings of a model folder or Hub id; none where the model is not calibrated.

    Args:
        where: `revision`, `token`, `cache_dir` and the like, as `from_pretrained` takes them.

    Raises:
        ValueError: naming the file and the finding that is malformed.
    """
    path = cached_file(model, FINDINGS, _raise_exceptions_for_missing_entries=False, **where)
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)["findings"].items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path} is malformed: it needs an object `findings`; calibrate the model again") from None
    return {name: _finding(name, entry, path) for name, entry in entries}


def _finding(name: str, entry, path) -> Finding:
    values = entry if isinstance(entry, dict) else {}
    prompts, numbers = values.get("prompts"), [values.get("slope"), values.get("intercept")]
    texts = isinstance(prompts, list) and prompts and all(isinstance(text, str) and text.strip() for text in prompts)
    missing = numbers == [None, None]
    if not texts or not (missing or all(_is_finite(number) for number in numbers)):
        raise ValueError(f"{path}: {name!r} needs prompts, and slope and intercept as numbers; calibrate again")
    return Finding(name, tuple(prompts), *numbers)


def _is_finite(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def findings_of(labels: str | Sequence[str] | Mapping[str, Sequence[str]], calibrated: dict) -> list[Finding]:
    """Returns the findings that labels name: the model's calibrated ones, or new ones that a label describes.

    Args:
        labels: a list of labels, a text with commas between them, or label -> its prompts.
        calibrated: of `read_findings`; own prompts of a label make another finding, which is not calibrated.

    Raises:
        ValueError: where there are no labels, or a label or prompt is empty or no text.
    """
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",")]
    texts = dict(labels) if isinstance(labels, Mapping) else dict.fromkeys(labels)
    findings = []
    for label, prompts in texts.items():
        prompts = [prompts] if isinstance(prompts, str) else prompts
        given = [label, *(prompts or ())]
        if not all(isinstance(text, str) and text.strip() for text in given):
            raise ValueError(f"finding {label!r}: a label and its prompts must be texts that are not empty")
        known = calibrated.get(label)
        if known is not None and tuple(prompts or known.prompts) == known.prompts:
            findings.append(known)
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
