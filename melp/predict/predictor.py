"""A model as predict.py uses it: recordings in, one row per window out."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from findings_melp import (
    NOT_CALIBRATED,
    Finding,
    check_calibration,
    condition_of,
    embed_prompts,
    findings_file,
    findings_of,
    read_findings,
)
from melp.evaluation.models import model_fingerprint
from melp.evaluation.prompts import PROMPTS, load_yaml
from melp.models import load_model, load_processor, model_folder
from melp.predict.reading import Item, Reading
from melp.sources import parse_source
from modeling_melp import MelpForEcgClassification, MelpModel

DEFAULT_LABEL_SET = "findings"  # of prompts.yaml, where neither the user nor the model's calibration names any
QUALITY = (  # columns of the processor's report
    *("sampling_rate", "seconds", "leads", "derived_leads", "masked_leads", "done", "warnings", "flat_leads"),
    *("nan_share", "clipped_share", "limb_error_mv", "peak_to_peak_mv", "suspected_swap"),
)


def choose_findings(folder: str, findings: str | None, label_set: str | None) -> list[Finding]:
    """Returns the findings to ask for: those named, those of a label set, the calibrated ones, or our default set.

    Args:
        findings: names, with commas between them.
        label_set: of prompts.yaml.

    Raises:
        ValueError: for both, an unknown label set, or an empty list.
    """
    calibrated = read_findings(folder)
    if findings is not None and label_set is not None:
        raise ValueError("give --findings or --label-set, not both.")
    known = load_yaml(PROMPTS)
    if findings is not None:
        texts = {name.lower(): texts for name, texts in known[DEFAULT_LABEL_SET].items()}
        texts |= dict.fromkeys((name.lower() for name in calibrated), None)
        names = dict.fromkeys(name.strip() for name in findings.split(",") if name.strip())
        return findings_of({name: texts.get(name.lower()) for name in names}, calibrated)
    if label_set is None and calibrated:
        return list(calibrated.values())
    label_set = label_set or DEFAULT_LABEL_SET
    if label_set not in known:
        raise ValueError(f"--label-set {label_set} is none of {', '.join(known)}.")
    texts = known[label_set]
    return findings_of({name: None if name in calibrated else texts[name] for name in texts}, calibrated)


# What files whose patients were made anonymous have in place of an identifier: these patients are not one.
_NOBODY = re.compile(r"[\s0xX._?-]*|anonym\w*|unknown|none|n/?a", re.IGNORECASE)


class Predictor:
    """A model with its processor, and the findings that it is asked for.

    Args:
        source: folder, ID or ID@REVISION of a whole model, a classifier or an ECG tower.
        findings, label_set: see `choose_findings`; not for a classifier, which has its own classes, nor for a tower,
            which has none.
        draft: with a drafted report.
        embeddings: with the L2-normalised rhythm embedding.
        keep_identifiers: with what identifies the patient; else the patient's identifier becomes a pseudonym.
        key: of the pseudonyms.

    Raises:
        ValueError: naming what the model cannot do.
    """

    def __init__(
        self,
        source: str,
        device: torch.device,
        findings: str | None = None,
        label_set: str | None = None,
        draft: bool = False,
        embeddings: bool = False,
        keep_identifiers: bool = False,
        key: bytes = b"",
        batch_size: int = 16,
    ):
        folder = str(model_folder(source))
        bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()  # pays only with matrix units for it
        self.model = load_model(source, torch.bfloat16 if bfloat16 else torch.float32).to(device).eval()
        self.processor = load_processor(source)
        self.extractor = getattr(self.processor, "feature_extractor", self.processor)
        self.source, self.draft, self.embeddings, self.batch_size = source, draft, embeddings, batch_size
        self.keep_identifiers, self.key = keep_identifiers, key
        self.commit = self._commit(source, folder)
        self.findings: list[Finding] = []
        whole = isinstance(self.model, MelpModel)
        if (findings or label_set) and not whole:
            raise ValueError(f"{source} has no text tower: --findings and --label-set need a whole MELP model.")
        if draft and not whole:
            raise ValueError(f"{source} has no report decoder: --draft needs a whole MELP model.")
        if whole:
            check_calibration(self.model, findings_file(folder))
            self.findings = choose_findings(folder, findings, label_set)
            prompts = [finding.prompts for finding in self.findings]
            self.texts = embed_prompts(self.model, self.processor, prompts).to(device)

    @staticmethod
    def _commit(source: str, folder: str) -> str:
        """Returns the Hub's commit of the weights, or a fingerprint of those of a folder."""
        return model_fingerprint(folder) if parse_source(source).path else folder.rstrip("/").rpartition("/")[2]

    @property
    def dim(self) -> int:
        """Returns the width of an embedding."""
        config = self.model.config
        return getattr(config, "ecg_config", config).projection_dim

    @property
    def classes(self) -> list[str]:
        """Returns the names of what is scored, in the order of the scores."""
        if isinstance(self.model, MelpForEcgClassification):
            labels = self.model.config.id2label
            return [labels[index] for index in range(len(labels))]
        return [finding.name for finding in self.findings]

    @property
    def calibration(self) -> str | None:
        """Says in words what the numbers are not; None where all are probabilities."""
        if all(finding.slope is not None for finding in self.findings):
            return None
        return NOT_CALIBRATED

    def settings(self, reading: Reading) -> dict:
        """Returns all that decides what is predicted, as JSON has it: an output is of one such."""
        extractor = {name: value for name, value in self.extractor.to_dict().items() if not name.startswith("_")}
        settings = {
            "model": self.source,
            "commit": self.commit,
            "findings": {finding.name: list(finding.prompts) for finding in self.findings} or self.classes,
            "calibration": hashlib.sha256(repr(self.findings).encode()).hexdigest()[:16],
            "processor": extractor | vars(reading),
            "draft": self.draft,
            "embeddings": self.embeddings,
            "keep_identifiers": self.keep_identifiers,
        }
        return json.loads(json.dumps(settings))

    # -------------------------------------------------------------------------------------------------- predicting

    def predict(self, items: Iterable[Item]) -> Iterator[tuple[Item, list[dict]]]:
        """Yields each item with its rows, one per window; no rows for one that could not be read."""
        waiting, windows = [], 0
        for item in items:
            waiting.append(item)
            windows += 0 if item.values is None else len(item.values)
            if windows >= self.batch_size:
                yield from self._rows_of(waiting)
                waiting, windows = [], 0
        yield from self._rows_of(waiting)

    def _rows_of(self, items: list[Item]) -> Iterator[tuple[Item, list[dict]]]:
        readable = [item for item in items if item.values is not None]
        outputs = iter(self._outputs(readable) if readable else ())
        for item in items:
            rows = []
            if item.values is not None:
                common = self._common(item)
                for number, start in enumerate(item.starts, item.number):
                    rows.append({**common, "window": number, "start": start, **next(outputs)})
                item.values = None  # what waits to be written needs no signal
            yield item, rows

    def _common(self, item: Item) -> dict:
        row = {"record": item.record, "path": item.path, "patient": self._patient(item)}
        row |= {name: item.quality[name] for name in QUALITY}
        if self.keep_identifiers:
            row["identifiers"] = json.dumps(item.identifiers)
        return row | {"model": self.source, "commit": self.commit}

    def _patient(self, item: Item) -> str | None:
        name = item.identifiers.get("patient_id")
        if name is None or self.keep_identifiers:
            return name
        if _NOBODY.fullmatch(str(name)):
            return None
        return hashlib.blake2b(str(name).encode(), digest_size=8, key=self.key).hexdigest()

    @torch.inference_mode()
    def _outputs(self, items: list[Item]) -> Iterator[dict]:
        values, masks = items[0].values, items[0].lead_mask
        if len(items) > 1:
            values = np.concatenate([item.values for item in items])
            masks = np.concatenate([item.lead_mask for item in items])
        leads = self.extractor.leads
        conditions = [condition_of(item.quality, leads, item.layout) for item in items for _ in item.values]
        for first in range(0, len(values), self.batch_size):
            batch = slice(first, first + self.batch_size)
            ecg = torch.from_numpy(values[batch]).to(self.model.device, self.model.dtype, non_blocking=True)
            yield from self._encode(ecg, torch.from_numpy(masks[batch]).to(self.model.device), conditions[batch])

    def _encode(self, ecg: torch.Tensor, lead_mask: torch.Tensor, conditions: list[str | None]) -> Iterator[dict]:
        tower = getattr(self.model, "ecg_model", self.model)
        encoded = tower(ecg, lead_mask=lead_mask)
        embeddings = F.normalize(encoded.rhythm_embeds.float(), dim=-1)
        if isinstance(self.model, MelpForEcgClassification):
            logits = self.model.classifier(encoded.probe_embeds).float()
            exclusive = self.model.config.problem_type == "single_label_classification"
            probabilities = (logits.softmax(-1) if exclusive else logits.sigmoid()).tolist()
            scores = [self._ranked(self.classes, [None] * len(row), row, [None] * len(row)) for row in probabilities]
        elif self.findings:
            similarities = (embeddings @ self.texts.T).tolist()
            scores = [self._told(row, condition) for row, condition in zip(similarities, conditions, strict=True)]
        else:
            scores = [{}] * len(ecg)
        drafts = self._drafts(encoded) if self.draft else None
        for row, score in enumerate(scores):
            output = dict(score)
            if drafts:
                output["draft"] = drafts[row]
            if self.embeddings:
                output["embedding"] = embeddings[row].cpu().numpy()
            yield output

    def _told(self, similarities: list[float], condition: str | None) -> dict:
        """Returns the findings of a recording of a condition; those that cannot be told from such are left out."""
        pairs = zip(self.findings, similarities, strict=True)
        told = [(finding.under(condition), finding.name, similarity) for finding, similarity in pairs]
        kept = [entry for entry in told if entry[0] is not None]
        names, cosines = [name for _, name, _ in kept], [similarity for *_, similarity in kept]
        probabilities = [finding.probability(similarity) for finding, _, similarity in kept]
        verdicts = [finding.verdict(similarity) for finding, _, similarity in kept]
        left_out = [name for finding, name, _ in told if finding is None]
        return self._ranked(names, cosines, probabilities, verdicts) | {"condition": condition, "left_out": left_out}

    @staticmethod
    def _ranked(names: list[str], similarities: list, probabilities: list, verdicts: list) -> dict:
        """Sorts by probability, or by similarity where not all have a probability: the two have no common order."""
        key = similarities if None in probabilities else probabilities
        order = sorted(range(len(key)), key=lambda index: -key[index])
        columns = {"findings": names, "similarities": similarities, "probabilities": probabilities}
        columns["verdicts"] = verdicts
        return {column: [values[index] for index in order] for column, values in columns.items()}

    def _drafts(self, encoded) -> list[str]:
        ids = self.model.generate(encoder_outputs=encoded, do_sample=False)
        return self.processor.batch_decode(ids, skip_special_tokens=True)
