"""README and pages: nothing leads nowhere, one paper is cited, a front door of one sheet."""

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
