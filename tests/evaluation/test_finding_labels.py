"""Which labels name a finding, and what they say of recordings."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List

from melp.evaluation.finding_labels import finding_targets, findings_in, rests_on, whole_recordings
from signal_melp import LEADS


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


def test_only_recordings_of_all_leads_and_10_s_are_whole():
    def rows(*recordings):
        return Dataset.from_dict(
            {
                "leads": [leads for leads, _ in recordings],
                "signal": [bytes(2 * round(500 * seconds) * len(leads)) for leads, seconds in recordings],
            }
        )

    eight = [lead for lead in LEADS if lead not in ("III", "aVR", "aVL", "aVF")]
    every = rows((list(LEADS), 10), (["I"], 10), (list(LEADS), 5), (eight, 10), (list(LEADS), 60))
    kept, notes = whole_recordings(every, True, "data")
    assert [len(leads) for leads in kept["leads"]] == [12, 8, 12] and notes == [
        "Left out of data: 2 recordings of fewer than 12 leads, or less than 10 s."
    ]
    assert len(whole_recordings(every, False, "data")[0]) == 2, "nothing is derived"
    assert whole_recordings(every.select([4]), True, "data")[1] == []
    with pytest.raises(ValueError, match="local has no recording of 12 leads and 10 s"):
        whole_recordings(every.select([1, 2]), True, "local")


def test_what_a_calibration_rests_on_is_known_by_folder_and_split():
    data = {"fingerprint": "a", "split": "validation"}
    assert rests_on(data, ["b", "a"], "validation") and rests_on(data, ["a"], "all")
    assert rests_on(data | {"split": "all"}, ["a"], "test")
    assert not rests_on(data, ["a"], "test") and not rests_on(data, ["b"], "validation")
    assert not rests_on({}, [None], "test") and not rests_on(data | {"fingerprint": None}, [None], "validation")
