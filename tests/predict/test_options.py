"""Options and files that cannot be are refused, by name."""

import pytest
from predicting import run


@pytest.mark.parametrize(
    "model, options, message",
    [
        ("tower", ["--findings", "x"], "text tower"),
        ("classifier", ["--draft"], "report decoder"),
        ("whole", ["--label-set", "nothing"], "nothing is none of"),
        ("whole", ["--pictures"], "--output"),
        ("whole", ["--embeddings"], "--format csv or jsonl"),
        ("whole", ["--keep-identifiers"], "--format csv or jsonl"),
        ("whole", ["--format", "table", "--output", "out"], "--format table is for the screen"),
        ("whole", ["--stride", "0"], "--stride"),
        ("absent", [], "absent"),
    ],
)
def test_what_cannot_be_is_refused(models, ecgs, model, options, message):
    with pytest.raises(SystemExit, match=message):
        run(ecgs / "a", "--model", models / model, *options)


def test_an_absent_file_is_refused(models, tmp_path):
    with pytest.raises(SystemExit, match="does not exist"):
        run(tmp_path / "nothing", "--model", models / "whole")
