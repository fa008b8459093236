"""The end of the demo."""

from melp.evaluation.tasks.demo import report_demo


def test_demo_shows_figures_and_drafts(evaluated, tmp_path, capsys):
    report_demo(evaluated / "model", evaluated / "rhythm", tmp_path)
    printed = capsys.readouterr().out
    assert "AUROC untrained" in printed and printed.count("draft:") == 3
    assert (tmp_path / "zero-shot" / "predictions.parquet").is_file()
