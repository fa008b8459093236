"""Transfer: every pair of folders, over the findings that both label."""

import numpy as np
import pytest
from evaluating import run
from tiny import RHYTHMS

from melp.evaluation.tasks.transfer import open_folder


@pytest.mark.slow
def test_transfer_pairs_labels_by_finding(evaluated, tmp_path):
    other = str(evaluated / "encoder")
    results, predictions = run(evaluated, tmp_path, "transfer", "--against", other, data=("data", "rhythm"))
    across = [row for row in results["classes"] if row["source"].endswith("(findings)") and "rhythm" in row["target"]]
    assert {row["label"]: row["target_labels"] for row in across} == {name: [code] for name, code in RHYTHMS.items()}
    rows = {(row["source"], row["target"], row["method"]): row for row in results["groups"]}
    a, b = sorted({row["source"] for row in results["groups"]}, key=lambda name: name.endswith("(rhythm)"))
    # The same recordings under other names: the same figure.
    assert rows[a, b, "probe"]["auroc"] == pytest.approx(rows[b, b, "probe"]["auroc"])
    assert predictions.groupby(["source", "target"]).ngroups == 4
    pair = rows[a, b, "probe"]["auroc"] - rows[a, b, "probe_other"]["auroc"]
    assert rows[a, b, "probe_other"]["less"]["value"] == pytest.approx(pair)
    assert (a, b, "zero_shot") in rows and (a, b, "zero_shot_other") not in rows
    assert f"{other} has no text tower: no zero-shot matrix." in results["notes"]
    assert {name: len(units) for name, units in results["profile"].items()} == {"model": 4, "other": 4}
    with pytest.raises(SystemExit, match="two or more folders"):
        run(evaluated, tmp_path, "transfer")


def test_a_folder_is_opened_with_a_label_set_that_others_can_share(evaluated):
    folder = open_folder(str(evaluated / "rhythm"), None, "test")
    assert folder.data.label_set == "rhythm" and set(folder.data.rows) == {"train", "validation", "test"}
    either = folder.any_of("test", [["SR", "AFIB"], ["SR"]])
    columns = [folder.data.targets["test"][:, folder.data.classes.index(name)] for name in ("SR", "AFIB")]
    np.testing.assert_array_equal(either, np.stack([columns[0] | columns[1], columns[0]], axis=1))
    with pytest.raises(ValueError, match="no label set 'subclass'"):
        open_folder(str(evaluated / "rhythm"), "subclass", "test")
