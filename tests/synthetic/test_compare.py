"""The comparison of simulated with real recordings prints quantiles and draws."""

import pytest

from melp.synthetic.compare import main as compare


@pytest.mark.slow
def test_command_prints_quantiles_and_draws(tmp_path, capsys):
    from melp.prepare.folder import prepare

    folder = prepare("synthetic", tmp_path / "real", records=40)
    compare([str(folder), "--records", "12", "--picture", str(tmp_path / "compare.png")])
    printed = capsys.readouterr().out
    assert "T V4" in printed and "Sokolow-Lyon" in printed and "microvolts" in printed
    assert (tmp_path / "compare.png").stat().st_size > 20_000
    with pytest.raises(SystemExit, match="no label set superclass"):
        compare([str(folder), "--label", "normal", "--records", "3"])
