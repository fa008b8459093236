"""Labels as texts to learn from: what a label set says of a recording, in words of the corpus, whatever the database.

A report says which findings there are in one way; a user asks in another. The label loss (`losses_melp.label_loss`)
ranks the ECGs of a batch by each of many short texts, and the texts for each ECG. Which recordings a text is true of
follows from the labels, as `labels.yaml` reads them; of what a label set does not tell, nothing is learned.
"""

from collections import Counter
from functools import cache

import numpy as np
import pandas as pd
import torch
from datasets import Dataset

from melp.data.prepared import label_matrix, label_sets
from melp.evaluation.correspondences import correspondences, labels_of
from melp.synthetic.findings import FINDINGS, STATEMENTS
from melp.synthetic.reports import denying, general_findings, short_wordings, unclear_beside, wordings

PRESENT, ABSENT, UNKNOWN = 1, 0, -1
NEGATED = "no "  # begins the name of a text that is true where a finding is absent
HEDGED, EARLIER = 0.1, 0.3  # share of texts with "possible"; of negated ones that tell of an earlier recording


@cache
def label_texts() -> dict[str, list[str]]:
    """Returns `{finding, family of findings or "no " + finding: its texts}`, from the corpus's wordings.

    Texts that need a measured number or a place are left out, and those that several names share ("bigeminy"), which
    would be true and false of one recording.
    """
    texts = short_wordings() | {NEGATED + name: texts for name, texts in wordings()["negated"].items()}
    counts = Counter(text for name in texts for text in set(texts[name]))
    own = {name: [text for text in forms if counts[text] == 1] for name, forms in texts.items()}
    return {name: forms for name, forms in own.items() if forms}


def draw_text(name: str) -> str:
    """Draws one of a name's texts, by torch's generator: now and then hedged, or told of an earlier recording."""
    texts, table = label_texts()[name], wordings()
    text = texts[int(torch.randint(len(texts), ()))]
    chance = float(torch.rand(()))
    if name.startswith(NEGATED):
        if chance < EARLIER:
            forms = label_texts()[name.removeprefix(NEGATED)]
            text = table["earlier"][int(torch.randint(len(table["earlier"]), ()))].format(finding=forms[0])
    elif chance < HEDGED and FINDINGS.get(name) and FINDINGS[name].family not in ("rhythm", "normal"):
        text = f"{table['hedges'][int(torch.randint(len(table['hedges']), ()))]} {text}"
    return f"{text}."


def label_targets(split: Dataset) -> np.ndarray:
    """Returns (rows, names of `label_texts`) int8: whether each text is true of a recording.

    The corpus is labelled with findings. Another database's label sets are read by `labels.yaml`, and PTB-XL's
    statements by the findings' own. A finding that is absent while another of its PTB-XL subclass is present (an
    anterior infarction beside an anteroseptal one) counts neither way, as does what a label set does not tell apart.
    """
    matrices = {name: _known(split, name) for name in label_sets(split)}
    unknown = np.full(len(split), UNKNOWN, dtype=np.int8)
    if "findings" in matrices:
        # The textbook variety draws some of the findings only.
        columns = {name: matrices["findings"].get(name, unknown) for name in FINDINGS}
        for family, members in general_findings().items():
            columns[family] = _any_of([columns[name] for name in members])
    else:
        kinds = {name: [name] for name in FINDINGS} | general_findings()
        columns = {name: _target(name, members, matrices, unknown) for name, members in kinds.items()}
        for family, members in general_findings().items():
            if "superclass" in correspondences().get(family, {}):
                continue  # PTB-XL's own families
            stated = np.any([columns[name] == PRESENT for name in members], axis=0)
            columns[family] = np.where(stated, PRESENT, columns[family])
        _leave_siblings(columns)
    for family in general_findings():
        beside = np.any([columns[name] == PRESENT for name in unclear_beside(family)], axis=0)
        columns[family] = np.where((columns[family] == ABSENT) & beside, UNKNOWN, columns[family])
    for name in label_texts():
        if name.startswith(NEGATED):
            denied = name.removeprefix(NEGATED)
            present = columns[denied]
            related = [columns[finding] for finding in denying(denied) if (columns[finding] != UNKNOWN).any()]
            beside = np.any([present != ABSENT, *(column != ABSENT for column in related)], axis=0)
            columns[name] = np.where(present == PRESENT, ABSENT, np.where(beside, UNKNOWN, PRESENT))
    return np.stack([columns[name] for name in label_texts()], axis=1).astype(np.int8)


def _known(split: Dataset, label_set: str) -> pd.DataFrame:
    """Returns a column per class: 1, 0, or -1 where a recording is not labelled in the set."""
    classes = label_sets(split)[label_set]
    matrix = np.full((len(split), len(classes)), UNKNOWN, dtype=np.int8)
    if any(labels is not None for labels in split.select_columns([label_set])[label_set][:]):
        values, rows = label_matrix(split, label_set)
        matrix[rows] = values
    return pd.DataFrame(matrix, columns=classes)


def _any_of(columns: list[np.ndarray]) -> np.ndarray:
    """Joins targets: present where any is, absent where all are."""
    stacked = np.stack(columns)
    return np.where((stacked == PRESENT).any(axis=0), PRESENT, stacked.min(axis=0))


def _target(name: str, members, matrices: dict[str, pd.DataFrame], target: np.ndarray) -> np.ndarray:
    """Returns a finding's or family's target: present where any label set says so, absent where one denies it."""
    statements = {FINDINGS[member].statement for member in members} & set(matrices.get("all", ()))
    if statements and "superclass" not in correspondences().get(name, {}):
        # PTB-XL: a statement of several findings (PACE) tells of one of them only where it is absent.
        named: dict[str, set[str]] = {}
        for finding, about in FINDINGS.items():
            named.setdefault(about.statement, set()).add(finding)
        own = [statement for statement in statements if named[statement] <= set(members)]
        stated = matrices["all"][list(statements)].max(axis=1).to_numpy()
        certain = matrices["all"][own].max(axis=1).to_numpy() if own else np.full_like(stated, UNKNOWN)
        return np.where(certain == PRESENT, PRESENT, np.where(stated == PRESENT, UNKNOWN, stated))
    if name in correspondences():
        for label_set, matrix in matrices.items():
            labels = labels_of(name, label_set, list(matrix))
            if labels:
                target = np.maximum(target, matrix[labels].max(axis=1))
    return target


def _leave_siblings(columns: dict[str, np.ndarray]):
    """Makes unknown what is absent beside another finding of its subclass."""
    groups: dict[str, list[str]] = {}
    for name, finding in FINDINGS.items():
        subclass = STATEMENTS.get(finding.statement, ["-", "-"])[1]
        if subclass != "-":
            groups.setdefault(subclass, []).append(name)
    for names in groups.values():
        present = np.any([columns[name] == PRESENT for name in names], axis=0)
        for name in names:
            columns[name] = np.where(present & (columns[name] == ABSENT), UNKNOWN, columns[name])
