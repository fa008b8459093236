"""Several prepared folders measured as one."""

import numpy as np
import pytest
from evaluating import run
from tiny import RHYTHMS

from melp.data.prepared import label_matrix, label_sets
from melp.evaluation.folders import SHARED, load_folders
from melp.synthetic import corpus as synthetic

FINDINGS = synthetic.TEXTBOOK


def test_several_folders_are_measured_as_one_over_what_they_share(evaluated):
    """The same recordings under two label sets: twice as many, each finding's positives twice."""
    folders = [str(evaluated / name) for name in ("data", "rhythm")]
    both, one = load_folders(folders), load_folders(folders[:1])
    assert both["test"].num_rows == 2 * one["test"].num_rows
    assert label_sets(both["test"]) == {SHARED: list(RHYTHMS)}
    targets, _ = label_matrix(both["test"], SHARED)
    alone, _ = label_matrix(one["test"], "findings")
    columns = [FINDINGS.index(name) for name in RHYTHMS]
    np.testing.assert_array_equal(targets, np.concatenate([alone[:, columns]] * 2))
    assert not set(both["test"]["patient"]) & set(both["train"]["patient"])
    assert len(set(both["test"]["patient"])) == 2 * len(set(one["test"]["patient"]))


@pytest.mark.slow
def test_all_splits_of_several_folders(evaluated, tmp_path):
    results, predictions = run(evaluated, tmp_path, "zero-shot", "--split", "all", data=("data", "rhythm"))
    assert results["records"] == 400 and predictions["label"].unique().tolist() == list(RHYTHMS)
    assert all(row["threshold"] is None for row in results["classes"])  # nothing was held out


def test_folders_that_cannot_be_one_are_refused(evaluated, tmp_path):
    with pytest.raises(SystemExit, match="as many names in --label-set"):
        run(evaluated, tmp_path, "zero-shot", "--label-set", "findings", data=("data", "rhythm"))
    with pytest.raises(SystemExit, match="fitted on"):
        run(evaluated, tmp_path, "linear-probe", "--split", "all", data=("data", "rhythm"))
