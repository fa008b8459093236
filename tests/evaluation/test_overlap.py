"""Warnings where a model was trained on what it is tested on."""

import pytest

from melp.evaluation.overlap import overlaps


@pytest.mark.parametrize(
    "datasets, database, warned",
    [
        ("[ptb-xl]", "ptbxl", "trained on ptb-xl"),
        ("physionet/challenge-2021", "cpsc2018", "contains cpsc2018"),
        ("[ptb-xl]", "challenge2021", "challenge2021 contains ptbxl"),
        ("[challenge]", "st_petersburg_incart", "contains stpetersburgincart"),
        ("[georgia]", "challenge", "challenge contains georgia"),
        ("[mimic-iv-ecg]", "ptbxl", None),
    ],
)
def test_a_card_that_names_the_tested_data_is_a_warning(tmp_path, datasets, database, warned):
    (tmp_path / "README.md").write_text(f"---\nlicense: mit\ndatasets: {datasets}\n---\n# A model\n")
    found = overlaps(str(tmp_path), [database])
    assert found == [] if warned is None else warned in found[0]
