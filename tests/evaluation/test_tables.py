"""Pages of results follow from the results alone."""

import json
from pathlib import Path

import pytest

from melp.evaluation.tables import fill, main

REPO = Path(__file__).resolve().parents[2]
RESULTS = {
    "task": "zero-shot",
    "model": "runs/demo/model",
    "command": "python evaluate.py zero-shot --model runs/demo/model --data runs/corpus",
    "records": 1607,
    "patients": 317,
    "settings": {"cache": "/home/somebody/.cache/melp"},
    "metrics": {
        "macro_auroc": {"value": 0.9371, "low": 0.9259, "high": 0.9462},
        "macro_auroc_less_untrained": {"value": 0.41, "low": 0.39, "high": 0.43, "holds": True},
        "rankme": {"value": 21.77, "low": None, "high": None},
    },
    "classes": [{"label": "long qt", "positives": 1061, "auroc": 0.91, "auroc_low": 0.9, "auroc_high": 0.92}],
    "tables": {"Macro": "| a | b |\n| --- | ---: |\n| model | 0.937 |"},
}
ADAPTED = {"records": 100, "measured": {"brier": {key: {"value": 0.1} for key in ("before", "after", "difference")}}}
PAGE = """# Results
{{records demo}} recordings of {{patients demo}} patients: {{figure demo macro_auroc}}, {{value demo macro_auroc}},
{{difference demo macro_auroc_less_untrained}}, rank {{ figure demo rankme }};
{{class demo "long qt" auroc}} of {{class demo 'long qt' positives}}.

{{table demo Macro}}

`{{command demo}}`
"""
WRITTEN = """# Results
1,607 recordings of 317 patients: 0.937 (0.926 to 0.946), 0.937,
+0.410 (+0.390 to +0.430) holds, rank 21.8;
0.910 (0.900 to 0.920) of 1,061.

| a | b |
| --- | ---: |
| model | 0.937 |

`python evaluate.py zero-shot --model runs/demo/model --data runs/corpus`
"""


def test_a_page_is_written_from_stored_results(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text(json.dumps(RESULTS))
    page, runs = tmp_path / "results.md", tmp_path / "results"
    main(["--page", str(page), "--store", "demo", str(tmp_path / "out")])
    assert "somebody" not in (runs / "demo.json").read_text()
    (runs / "page.md").write_text(PAGE)
    main(["--page", str(page)])
    assert page.read_text() == WRITTEN
    main(["--page", str(page), "--check"])
    page.write_text(WRITTEN.replace("0.937", "0.999"))
    with pytest.raises(SystemExit, match="is not what its results say"):
        main(["--page", str(page), "--check"])


@pytest.mark.parametrize(
    "field, message",
    [
        ("figure demo recall_1", "demo.json has no such figure"),
        ("class demo AFIB auroc", "demo.json has no such figure"),
        ("figure other macro_auroc", "other.json cannot be read"),
        ("average demo macro_auroc", "is no field"),
    ],
)
def test_a_field_without_its_figure_is_an_error(tmp_path, field, message):
    (tmp_path / "demo.json").write_text(json.dumps(RESULTS))
    with pytest.raises(ValueError, match=message):
        fill(f"a {{{{{field}}}}} b", tmp_path)


@pytest.mark.parametrize("page", ["results", "calibration", "evidence"])
def test_the_pages_of_this_repository_are_up_to_date(page, monkeypatch):
    monkeypatch.chdir(REPO)
    main(["--page", f"docs/{page}.md", "--check"])


def test_a_page_shows_the_passport_of_a_model(tmp_path):
    row = {"auroc": 0.91, "low": 0.8, "high": 0.95, "positives": 40}
    content = {"findings": {"x": {"passport": {"12 leads": row, "I": row | {"low": 0.6}}}, "y": {}}}
    (tmp_path / "findings.json").write_text(json.dumps(content))
    assert fill("{{passport findings}}", tmp_path) == (
        "| finding | positives | 12 leads | I |\n| --- | ---: | ---: | ---: |\n| x | 40 | 0.91 | (0.91) |"
    )
