"""Findings and the labels that name them: what calibration fits on, and is measured on, in any prepared folder.

A finding has the name that `labels.yaml` gives its labels ("atrial fibrillation" for AFIB, AF or 164889003), else that
of its first prompt; several labels that name it (AMI, ASMI, ALMI: anterior infarction) count as one. Of several label
sets that have it, the one that labels the most recordings is taken.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from findings_melp import LIMB, WHOLE, condition_of
from melp.data.prepared import ALL, label_matrix, label_sets
from melp.data.stored import STORED_RATE
from melp.evaluation.correspondences import finding_of, labels_of
from melp.evaluation.prompts import PROMPTS, load_yaml, prompts_elsewhere


def findings_in(rows: Dataset, names: Sequence[str] | None = None, prompts: str | None = None) -> dict[str, dict]:
    """Returns the findings that a folder labels: `{name: {"prompts", "label_set", "labels"}}`.

    Args:
        names: of label sets; by default all.
        prompts: a file as `prompts.yaml`, the default.

    Raises:
        ValueError: naming a label set that is not there.
    """
    sets, file = label_sets(rows), load_yaml(prompts or PROMPTS)
    for name in names or ():
        label_matrix(rows, name)  # an unknown one is an error that lists those there are
    sets = {name: classes for name, classes in sets.items() if names is None or name in names}
    entries, labelled = {}, {}
    for label_set, classes in sets.items():
        labelled[label_set] = sum(labels is not None for labels in rows.select_columns([label_set])[label_set])
        for label in classes:
            texts = file.get(label_set, file.get("", {})).get(label) or prompts_elsewhere(file, label_set, label) or []
            name = finding_of(label_set, label)
            if name is None:
                name = label.lower() if " " in label or not texts else texts[0].rstrip(".").lower()
            best = entries.get(name)
            if best is None or labelled[label_set] > labelled[best["label_set"]]:
                entries[name] = best = {"prompts": [], "label_set": label_set, "labels": []}
            if best["label_set"] == label_set:
                best["labels"].append(label)
                best["prompts"] = list(dict.fromkeys([*best["prompts"], *texts]))
    for name, entry in entries.items():
        entry["prompts"] = entry["prompts"] or [f"{name}."]
    return entries


def finding_targets(rows: Dataset, findings: dict[str, dict]) -> np.ndarray:
    """Returns what labels say of findings, (recordings, findings): 1 and 0, NaN where a recording is not labelled.

    A finding is looked for by its own labels in its own label set, else by those that name it in the label set that
    labels the most recordings; a column of NaN where none does.
    """
    sets = label_sets(rows)
    matrices = {}
    targets = np.full((len(rows), len(findings)), np.nan)
    for column, (name, entry) in enumerate(findings.items()):
        best = None
        for label_set, classes in sets.items():
            own = entry.get("label_set") == label_set and set(entry.get("labels", ())) <= set(classes)
            labels = entry["labels"] if own else labels_of(name, label_set, classes)
            if labels:
                if label_set not in matrices:
                    matrices[label_set] = label_matrix(rows, label_set)
                rank = (own, len(matrices[label_set][1]))
                if best is None or rank > best[0]:
                    best = rank, label_set, [classes.index(label) for label in labels]
        if best is not None:
            matrix, labelled = matrices[best[1]]
            targets[labelled, column] = matrix[:, best[2]].any(axis=1)
    return targets


def whole_recordings(rows: Dataset, derive: bool, where: str) -> tuple[Dataset, list[str]]:
    """Returns the recordings that a calibration without a condition is of, all leads for 10 s, and a note of others.

    What is told of fewer leads, or of less time, has curves of its own: the passport's.

    Args:
        derive: whether two limb leads give the others, as the processor takes them.
        where: the data as errors name them.

    Raises:
        ValueError: where there is none.
    """
    whole = []
    unharmed = {"masked_leads": (), "nan_share": 0, "flat_leads": (), "implausible_amplitude": False}
    for batch in rows.select_columns(["leads", "signal"]).with_format("arrow").iter(1000):
        sizes = pc.binary_length(batch["signal"]).to_pylist()
        for names, size in zip(batch["leads"].to_pylist(), sizes, strict=True):
            leads = set(names) | (LIMB if derive and len(LIMB & set(names)) > 1 else set())
            seconds = size / 2 / max(len(names), 1) / STORED_RATE  # int16
            whole.append(condition_of(unharmed | {"seconds": seconds}, leads) == WHOLE)
    if not any(whole):
        raise ValueError(f"{where} has no recording of 12 leads and 10 s, which a calibration is of.")
    left_out = whole.count(False)
    notes = [f"Left out of {where}: {left_out:,} recordings of fewer than 12 leads, or less than 10 s."]
    return (rows.select(np.flatnonzero(whole)), notes) if left_out else (rows, [])


def rests_on(data: Mapping, fingerprints: Collection[str | None], split: str) -> bool:
    """Tells whether a part of `findings.json` (`data` or `adapted`) rests on a split of these folders."""
    known = data.get("fingerprint") is not None and data["fingerprint"] in fingerprints
    return known and (data["split"] == split or ALL in (data["split"], split))
