"""README and pages: nothing leads nowhere, one paper is cited, a front door of one sheet."""

import json
import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
PAGES = sorted(path.relative_to(REPO).as_posix() for path in (*REPO.glob("*.md"), *REPO.glob("docs/*.md")))


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub and the Hub name them in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", (REPO / page).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://")):
            name, _, anchor = target.partition("#")
            path = ((REPO / page).parent / name) if name else REPO / page
            assert path.exists(), f"{page} links to {target}"
            assert not anchor or anchor in anchors(path), f"{page} links to {target}"


def test_the_readme_is_a_front_door():
    text = (REPO / "README.md").read_text()
    assert len(text.encode()) <= 9500


def test_the_paper_is_the_same_wherever_it_is_cited():
    entry = dict(re.findall(r"(\w+) += \{(.*)\}", (REPO / "melp/hub/citation.bib").read_text()))
    first, last = entry["pages"].split("--")
    stated = (REPO / "CITATION.cff").read_text(), (REPO / "README.md").read_text().replace("\n", " ")
    for fact in (re.sub("[{}]", "", entry["title"]), entry["volume"], first, last, entry["year"]):
        assert all(fact in text for text in stated), fact


@pytest.mark.parametrize(
    "page", [path.name for path in sorted((REPO / "docs").glob("*.md")) if path.name != "index.md"]
)
def test_the_index_names_every_page(page):
    assert f"({page})" in (REPO / "docs" / "index.md").read_text()


def test_every_command_is_in_the_readme():
    from melp.benchmark.startup import commands

    text = (REPO / "README.md").read_text()
    assert not [name for name in commands() if f"`{name}" not in text]


def cells(page: str, first: str) -> list[str]:
    """The cells of a table's row behind its first, or those below a header that begins with it."""
    lines = (REPO / page).read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return next(row[1:] for row in rows if row[0] == first)


@pytest.mark.parametrize(
    "row, run", [("simulated ECGs only, folds 1 to 9", "simulated"), ("released, fold 9", "released")]
)
def test_the_readme_has_the_figures_of_the_stored_runs(row, run):
    from melp.evaluation.results import with_bounds

    label_sets = cells("README.md", "real recordings of PTB-XL")
    files = [REPO / "docs" / "results" / f"{run}-{label_set}.json" for label_set in label_sets]
    figures = [json.loads(file.read_text())["metrics"]["macro_auroc_frequent"] for file in files]
    assert cells("README.md", row) == [with_bounds(figure, digits=3) for figure in figures]
    if run == "released":
        assert f"value: {figures[label_sets.index('superclass')]['value']:.3f}}}" in (REPO / "README.md").read_text()


def test_the_readme_has_the_means_of_the_lead_passport():
    text = (REPO / "README.md").read_text()
    header = next(line for line in text.splitlines() if line.startswith("| 12 leads |"))
    means = text.partition(header)[2].splitlines()[2]
    named = [name.strip().removeprefix("printed ") for name in header.strip("|").split("|")]
    measured = dict(zip(cells("docs/results.md", "finding"), cells("docs/results.md", "mean"), strict=True))
    assert [value.strip() for value in means.strip("|").split("|")] == [measured[name] for name in named]
