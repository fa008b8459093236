"""The end of the demo."""

import pytest
from datasets import DatasetDict

from melp.data.prepared import load_prepared
from melp.evaluation.tasks.demo import report_demo


@pytest.mark.slow
def test_demo_shows_figures_and_drafts(evaluated, tmp_path, capsys):
    report_demo(evaluated / "model", evaluated / "rhythm", tmp_path)
    printed = capsys.readouterr().out
    assert "AUROC untrained" in printed and printed.count("draft:") == 3
    assert (tmp_path / "zero-shot" / "predictions.parquet").is_file()


def test_demo_on_data_without_test_recordings_says_so(evaluated, tmp_path, capsys):
    splits = load_prepared(evaluated / "rhythm")
    for number, parts in enumerate(({"train": splits["train"]}, {"test": splits["test"].select([])})):
        DatasetDict(parts).save_to_disk(str(tmp_path / str(number)))
        report_demo(evaluated / "model", tmp_path / str(number), tmp_path)
        assert "has no recordings in a split 'test'" in capsys.readouterr().out
