"""Tables and texts that show what they were given, whatever it holds."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melp.markdown import Markdown, escape, table

HOSTILE = "a|b\nc <script>alert(1)</script> &lt; **bold** [link](x) `code` \\| \x07"


def cells(line: str) -> list[str]:
    """Splits a line of a table as a Markdown renderer does: at bars without a backslash of their own."""
    return [cell.strip() for cell in re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]]


def shown(text: str) -> str:
    """Returns the text that a renderer shows of escaped Markdown."""
    for entity, character in (("&lt;", "<"), ("&amp;", "&")):
        text = text.replace(entity, character)
    return re.sub(r"\\([\\`*|\[\]])", r"\1", text)


def test_no_cell_ends_early_and_no_html_comes_through():
    text = table(["label", "a|b"], [[HOSTILE, 1234], [None, 0.5]])
    lines = text.splitlines()
    assert len(lines) == 4 and all(len(cells(line)) == 2 for line in lines)
    assert "<" not in text and cells(lines[2])[1] == "1,234" and cells(lines[3]) == ["-", "0.500"]
    assert lines[1] == "| --- | ---: |" and table(["a", "b"], [], numeric=False).endswith("| --- | --- |")


@given(st.text(max_size=30))
def test_every_character_is_shown(text):
    escaped = escape(text)
    assert "\n" not in escaped and "<" not in escaped and not re.search(r"(?<!\\)(?:\\\\)*\|", escaped)
    printable = "".join(character if character.isprintable() else " " for character in text)
    assert shown(escaped) == " ".join(printable.split())


@pytest.mark.parametrize("text", ["Q&A", "lead_II", "a < b", "2 > 1", "AF (fibrillation)"])
def test_usual_names_stay_readable(text):
    assert escape(text).replace("&lt;", "<") == text
    assert escape(escape(text)) == escape(text) and isinstance(escape(text), Markdown)
