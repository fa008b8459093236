"""The comparison of rules tells what it is for: marginal limits fail those who have a rare finding."""

import numpy as np
import pandas as pd
import pytest

from melp.calibrate.rules import main


def test_class_conditional_limits_cover_the_rare(tmp_path, capsys):
    generator = np.random.default_rng(0)
    target = generator.random(1500) < 0.1
    score = 1 / (1 + np.exp(3 - 1.5 * target - generator.normal(size=1500)))
    columns = {"record": range(1500), "patient": [f"p{n}" for n in range(1500)], "label": "x"}
    pd.DataFrame(columns | {"target": target.astype(float), "score": score}).to_parquet(tmp_path / "p.parquet")
    main([str(tmp_path / "p.parquet"), "--repeats", "5"])
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    rows = {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}
    assert float(rows["marginal"][0]) < 0.5 < 0.85 < float(rows["class-conditional"][0])
    assert float(rows["class-conditional, and 50%"][4]) > float(rows["class-conditional"][4])
    assert {"logistic", "beta", "isotonic"} <= set(rows)
    with pytest.raises(SystemExit, match="melp.calibrate.rules: .*nothing.parquet is no predictions.parquet"):
        main([str(tmp_path / "nothing.parquet")])
