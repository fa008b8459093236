"""The sheet of a prediction: the ECG as clinicians print it, with findings, draft and warnings above."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from melp.drawing import draw_sheet
from melp.files import write_atomically
from melp.names import name_hash
from melp.predict.output import no_probabilities
from melp.predict.reading import Item, picture_name
from signal_melp import LEADS, EcgBlock, derive_limb_leads

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FINDINGS = 6
WIDTH = 76  # letters of a line of half a sheet


class Sheets:
    """Writes the sheets of recordings into a folder: as PDF a page per window, otherwise a file per window.

    Args:
        form: png, svg or pdf.
        calibration: what the sheets say of their numbers.
        keep_identifiers: whether they name the patient.
    """

    def __init__(self, folder: Path, form: str, calibration: str | None, keep_identifiers: bool):
        self.folder, self.form, self.calibration, self.keep_identifiers = folder, form, calibration, keep_identifiers
        self.pages: list[Figure] = []  # of the recording at hand

    def add(self, item: Item, rows: list[dict]) -> int:
        """Draws an item's windows and names the file (FILE.pdf#page=2) in their rows; returns how many were not drawn.

        A PDF is there when the recording's last item was added.
        """
        self.folder.mkdir(exist_ok=True)
        name = picture_name(item.path, name_hash(item.path))
        identifiers = item.identifiers if self.keep_identifiers else {}
        for block, row in zip(item.blocks, rows, strict=False):
            sheet, file = draw_prediction(block, row, self.calibration, identifiers), f"{name}.{self.form}"
            if self.form == "pdf":
                self.pages.append(sheet)
                page = f"#page={len(self.pages)}" if item.windows > 1 else ""
            else:
                file = f"{name}-{row['window'] + 1:04}.{self.form}" if item.windows > 1 else file
                write_atomically(self.folder / file, lambda path, sheet=sheet: sheet.savefig(path, format=self.form))
                page = ""
            row["picture"] = f"{self.folder.name}/{file}{page}"
        if item.is_last and self.pages:
            pages, self.pages = self.pages, []
            write_atomically(self.folder / f"{name}.pdf", lambda path: _write_pages(pages, path))
        drawn, item.blocks = len(item.blocks), []
        return len(rows) - drawn


def _write_pages(pages: "list[Figure]", path: Path):
    from matplotlib.backends.backend_pdf import PdfPages

    with PdfPages(path) as file:
        for page in pages:
            file.savefig(page)


def draw_prediction(
    block: EcgBlock, row: dict, calibration: str | None, identifiers: dict[str, str] | None = None
) -> "Figure":
    """Draws a window with what was predicted of it."""
    signal, leads, derived = all_leads(block, row["derived_leads"])
    return draw_sheet(
        signal,
        leads,
        block.sampling_rate,
        title="   ".join([row["record"], *(identifiers or {}).values()]),
        columns=header_columns(row, calibration),
        derived=derived,
        start=row["start"],
    )


def all_leads(block: EcgBlock, read: Sequence[str] = LEADS) -> tuple[np.ndarray, list[str], list[str]]:
    """Returns signal (leads, samples) in mV and leads of a block, with limb leads computed from others; and these.

    Args:
        read: leads that may be computed: `derived_leads` of the processor's report are those that the model had.
    """
    signal = np.zeros((1, len(LEADS), block.signal.shape[-1]), dtype=np.float32)
    present = np.zeros((1, len(LEADS)), dtype=bool)
    for row, lead in zip(block.signal[0], block.leads, strict=True):
        signal[0, LEADS.index(lead)], present[0, LEADS.index(lead)] = row, True
    usable = present & (signal.min(-1) != signal.max(-1))
    derived = derive_limb_leads(signal, present, usable)[0] & [lead in read for lead in LEADS]
    kept = present[0] | derived
    names = [lead for lead, keep in zip(LEADS, kept, strict=True) if keep]
    return signal[0, kept], names, [lead for lead, was in zip(LEADS, derived, strict=True) if was]


def header_columns(row: dict, calibration: str | None) -> tuple[list[str], list[str]]:
    """Returns the lines above the traces: findings on the left, draft and signal on the right."""
    left, right = [], []
    if findings := row.get("findings"):
        numbers = zip(findings, row["similarities"], row["probabilities"], row["verdicts"], strict=True)
        for name, similarity, probability, verdict in list(numbers)[:FINDINGS]:
            number = f"{similarity:.3f}" if probability is None else f"{probability:.0%}"
            left.append(f"{number}  {name}{f': {verdict}' if verdict else ''}")
        if None in row["probabilities"]:
            left.append(f"({no_probabilities(calibration)})")
    if row.get("draft"):
        right += textwrap.wrap(f"Draft, to be checked: {row['draft']}", WIDTH, max_lines=3)
    right += [textwrap.shorten(f"Warning: {warning}", WIDTH) for warning in row["warnings"]]
    return left, right + textwrap.wrap(f"Done: {'; '.join(row['done'])}", WIDTH, max_lines=2)
