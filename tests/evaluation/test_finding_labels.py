"""Which labels name a finding, and what they say of recordings."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List

from melp.evaluation.finding_labels import finding_targets, findings_in


def dataset(**sets) -> Dataset:
    """Label sets as (classes, labels of each recording)."""
    features = {name: List(ClassLabel(names=classes)) for name, (classes, _) in sets.items()}
    columns = {
        name: [None if row is None else [classes.index(label) for label in row] for row in rows]
        for name, (classes, rows) in sets.items()
    }
    return Dataset.from_dict(columns, Features(features))


@pytest.fixture
def ptbxl() -> Dataset:
    everything = [["AFIB"], ["ASMI", "AMI"], ["ALMI"], ["NORM"]]
    return dataset(
        rhythm=(["AFIB"], [["AFIB"], None, None, []]),
        superclass=(["MI", "NORM"], [[], ["MI"], ["MI"], ["NORM"]]),
        all=(["AFIB", "ALMI", "AMI", "ASMI", "NORM"], everything),
    )


def test_findings_have_plain_names_and_all_their_labels(ptbxl):
    findings = findings_in(ptbxl)
    assert set(findings) == {"atrial fibrillation", "myocardial infarction", "normal ecg", "anterior infarction"}
    assert findings["anterior infarction"]["labels"] == ["ALMI", "AMI", "ASMI"]
    assert findings["atrial fibrillation"]["label_set"] == "all", "it labels more recordings than rhythm"
    assert findings["atrial fibrillation"]["prompts"][0] == "atrial fibrillation."
    assert set(findings_in(ptbxl, ["rhythm"])) == {"atrial fibrillation"}
    targets = finding_targets(ptbxl, findings)
    column = list(findings).index("anterior infarction")
    assert targets[:, column].tolist() == [0, 1, 1, 0]
    with pytest.raises(ValueError, match="no label set 'nothing'"):
        findings_in(ptbxl, ["nothing"])


def test_another_database_is_read_by_its_own_labels(ptbxl):
    findings = findings_in(ptbxl)
    other = dataset(cpsc2018=(["AFIB", "RBBB"], [["AFIB"], [], None]))
    targets = finding_targets(other, findings)
    column = list(findings).index("atrial fibrillation")
    assert targets[:2, column].tolist() == [1, 0] and np.isnan(targets[2, column])
    assert np.isnan(np.delete(targets, column, axis=1)).all(), "what it does not label is unknown, not absent"
