"""Many recordings at once: a table, and files to take away."""

import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from melp.app import pages
from melp.app.engine import Engine
from melp.app.kept import Recording
from melp.app.uploads import Uploads
from melp.predict.output import write_csv, write_parquet
from melp.predict.pictures import draw_prediction
from melp.predict.reading import Reading

SHOW_EVERY = 1.0  # s; a batch whose page was closed ends when it would show something


def run_batch(
    engine: Engine, uploads: Uploads, folder: Path, pdf: bool
) -> Iterator[tuple[int, int, str, tuple[Path | None, ...] | None]]:
    """Yields recordings done and of how many, the table so far, and at the end CSV, Parquet and the zip of PDFs."""
    rows, rejected, reports = [], [], []
    total, calibrated = engine.count(folder), engine.predictor.calibration is None
    packed, shown = uploads.new_download("reports.zip") if pdf else None, time.monotonic()
    for done, one in enumerate(engine.read(folder, Reading()), start=1):
        if isinstance(one, Recording):
            rows.append(one.row)
            if pdf:
                reports.append(_report(engine, one, packed.parent, done))
        else:
            rejected.append(one)
        if time.monotonic() - shown >= SHOW_EVERY:
            shown = time.monotonic()
            yield done, total, pages.batch_table(rows, rejected, calibrated), None
    table = pages.batch_table(rows, rejected, calibrated)
    yield total, total, table, _write(engine, uploads, rows, reports, packed) if rows else (None, None, None)


def _report(engine: Engine, recording: Recording, folder: Path, number: int) -> Path:
    from melp.predict.reading import picture_name

    path = folder / f"{picture_name(recording.name, number)}.pdf"
    row = recording.row | {"draft": engine.draft(recording)["generated_text"]}
    draw_prediction(recording.block, row, engine.predictor.calibration).savefig(path, format="pdf")
    return path


def _write(engine: Engine, uploads: Uploads, rows: list[dict], reports: list[Path], packed: Path | None):
    rows = [{name: value for name, value in row.items() if name != "embedding"} for row in rows]
    table, parquet = uploads.new_download("predictions.csv"), uploads.new_download("predictions.parquet")
    with open(table, "w", newline="", encoding="utf-8") as file:
        write_csv(rows, engine.predictor.classes, file)
    settings = engine.predictor.settings(Reading()) | {"model": engine.name, "embeddings": False}
    write_parquet(rows, settings, engine.predictor.dim, parquet)
    if packed is not None:
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in reports:
                archive.write(path, path.name)
                path.unlink()
    return table, parquet, packed
