"""Markdown that tells what it was given: names of labels, records and models may hold any character."""

import re
from collections.abc import Sequence

# What would end a cell, start HTML or an entity, or be read as emphasis, code or a link.
_SPECIAL = re.compile(r"[\\`*|\[\]]")
_ENTITY = re.compile(r"&(?=#?\w+;)")


class Markdown(str):
    """Text that is Markdown already: `escape` leaves it as it is."""


def escape(text: object) -> Markdown:
    """Returns a text so that Markdown shows its very characters, in one line; control characters become blanks."""
    if isinstance(text, Markdown):
        return text
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    line = _ENTITY.sub("&amp;", _SPECIAL.sub(r"\\\g<0>", line))
    return Markdown(line.replace("<", "&lt;"))


def table(header: Sequence, rows: Sequence[Sequence], numeric: bool = True) -> Markdown:
    """Returns a table; None is "-", whole numbers have thousands' separators, other numbers three decimals.

    Args:
        header: names of the columns.
        rows: cells; what is no `Markdown` is escaped.
        numeric: all columns but the first are aligned to the right.
    """
    rule = ["---"] + ["---:" if numeric else "---"] * (len(header) - 1)
    lines = [[escape(name) for name in header], rule, *([_cell(value) for value in row] for row in rows)]
    return Markdown("\n".join("| " + " | ".join(line) + " |" for line in lines))


def _cell(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.3f}" if isinstance(value, float) else escape(value)
