"""Which labels of two databases name the same finding."""

import pandas as pd
import pytest
import yaml

from melp.databases.code15 import CLASSES as CODE15
from melp.databases.published import read_tables
from melp.databases.snomed import CHALLENGE
from melp.evaluation.correspondences import GROUPS, group_of, labels_of, shared_findings
from melp.evaluation.prompts import PROMPTS, load_prompts
from melp.synthetic import corpus as synthetic

FINDINGS = synthetic.TEXTBOOK


def published_classes(ecg_data) -> dict[str, list[str]]:
    statements = pd.read_csv(ecg_data / "ptbxl" / "scp_statements.csv", index_col=0).index.str.strip("_")
    classes = {"code15": CODE15, "challenge": sorted(set(CHALLENGE.values())), "findings": FINDINGS}
    classes["all"] = list(statements)
    for database in ("ptbxl", "cpsc2018", "csn"):
        classes |= read_tables(ecg_data / "splits", database)[1]
    return classes | {"csn-fixed": classes["csn"]}


@pytest.mark.slow
@pytest.mark.real_data
def test_every_label_of_the_benchmark_has_a_group_and_prompts(ecg_data):
    sets = published_classes(ecg_data)
    counts = {"superclass": 5, "subclass": 23, "form": 19, "rhythm": 12, "cpsc2018": 9, "csn": 38}
    assert {name: len(sets[name]) for name in counts} == counts
    for label_set, classes in sets.items():
        assert set(load_prompts(PROMPTS, label_set, classes)) == set(classes)
        assert {group_of(label_set, label) for label in classes} <= set(GROUPS)


@pytest.mark.real_data
def test_codes_and_statements_of_the_same_recordings_correspond(ecg_data):
    """PTB-XL's recordings carry statements in its own tables and SNOMED codes in the Challenge's headers."""
    table = pd.read_csv(ecg_data / "ptbxl" / "records_06000_labels.csv").set_index("ecg_id")
    names = yaml.safe_load((PROMPTS.parent / "labels.yaml").read_text())
    checked = 0
    for header in sorted((ecg_data / "cinc2021" / "ptb-xl" / "g1").glob("*.hea")):
        codes = header.read_text().split("Dx:")[1].split("\n")[0].strip().split(",")
        row = " ".join(str(cell) for cell in table.loc[int(header.stem[2:])])
        for entry in names.values():
            if not isinstance(entry.get("scp"), str) or "snomed" not in entry or f"'{entry['scp']}'" not in row:
                continue
            snomed = entry["snomed"] if isinstance(entry["snomed"], list) else [entry["snomed"]]
            assert {str(code) for code in snomed} & set(codes), (header.stem, entry)
            checked += 1
    assert checked >= 8


def test_the_same_letters_do_not_mean_the_same_finding():
    csn, code15 = ["AF", "AFIB", "ST", "STE"], ["AF", "ST"]
    shared = shared_findings(("csn", csn), ("code15", code15))
    assert shared == {"sinus tachycardia": (["ST"], ["ST"]), "atrial fibrillation": (["AFIB"], ["AF"])}
    assert "st elevation" not in shared_findings(("csn", csn), ("cpsc2018", ["STE", "AFIB"]))
    assert shared_findings(("csn-fixed", csn), ("findings", FINDINGS))["atrial flutter"] == (
        ["AF"],
        ["atrial flutter"],
    )


def test_a_gathering_label_is_opposite_all_that_it_gathers():
    shared = shared_findings(("superclass", ["CD", "NORM"]), ("code15", CODE15))
    assert shared == {"conduction disturbance": (["CD"], ["1dAVb", "LBBB", "RBBB"])}
    # Between two sets of single findings it has no place.
    assert "conduction disturbance" not in shared_findings(("findings", FINDINGS), ("code15", CODE15))
    assert shared_findings(("mine", ["a", "b"]), ("theirs", ["b", "c"])) == {"b": (["b"], ["b"])}
    assert labels_of("atrial fibrillation", "snomed", ["atrial fibrillation"]) == ["atrial fibrillation"]
