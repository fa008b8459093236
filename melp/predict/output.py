"""Rows of predictions as Parquet, CSV, JSON lines and a table on the screen."""

import csv
import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from findings_melp import NOT_CALIBRATED
from melp.notice import NOTICE

ROW_GROUP = 1000
SHOWN = 15  # findings of a record on the screen


def schema_of(settings: dict, dim: int) -> pa.Schema:
    """Returns the columns of an output; `dim` is the width of an embedding. Its metadata hold notice and settings."""
    texts, numbers = pa.list_(pa.string()), pa.list_(pa.float32())
    columns = {
        **{"record": pa.string(), "path": pa.string(), "patient": pa.string()},
        **({"identifiers": pa.string()} if settings["keep_identifiers"] else {}),
        **{"window": pa.int32(), "start": pa.float32()},
        **({"findings": texts, "similarities": numbers, "probabilities": numbers} if settings["findings"] else {}),
        **({"verdicts": texts, "condition": pa.string(), "left_out": texts} if settings["findings"] else {}),
        **({"draft": pa.string()} if settings["draft"] else {}),
        **({"embedding": pa.list_(pa.float32(), dim)} if settings["embeddings"] else {}),
        **{"sampling_rate": pa.float32(), "seconds": pa.float32(), "leads": texts, "derived_leads": texts},
        **{"masked_leads": texts, "done": texts, "warnings": texts, "flat_leads": texts},
        **{"nan_share": pa.float32(), "clipped_share": pa.float32(), "limb_error_mv": pa.float32()},
        **{"peak_to_peak_mv": pa.float32(), "suspected_swap": pa.string()},
        **({"picture": pa.string()} if settings.get("pictures") else {}),
        **{"model": pa.string(), "commit": pa.string(), "processor": pa.string()},
    }
    metadata = {"notice": NOTICE, "melp": json.dumps(settings)}
    return pa.schema(columns, metadata)


def write_parquet(rows: Iterable[dict], settings: dict, dim: int, path: Path):
    """Writes the rows of a shard, a few at a time in memory."""
    schema, processor = schema_of(settings, dim), json.dumps(settings["processor"])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        rows = iter(rows)
        while part := [{**row, "processor": processor} for row in islice(rows, ROW_GROUP)]:
            writer.write_table(pa.Table.from_pylist(part, schema))


def read_rows(folder: Path) -> Iterable[dict]:
    """Yields the rows of all shards of an output, a few at a time in memory."""
    for file in sorted((Path(folder) / "data").glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(ROW_GROUP):
            yield from batch.to_pylist()


def plain(row: dict) -> dict:
    """Returns a row as JSON has it."""
    return {
        name: [round(float(x), 6) for x in value] if isinstance(value, np.ndarray) else value
        for name, value in row.items()
    }


def write_jsonl(rows: Iterable[dict], file):
    """Writes a first line {"notice": ...}, then a JSON object per row."""
    file.write(json.dumps({"notice": NOTICE}) + "\n")
    for row in rows:
        file.write(json.dumps(plain(row)) + "\n")


def write_csv(rows: Iterable[dict], classes: list[str], file):
    """Writes the notice as a comment line, then the rows: a column per finding and number.

    pandas reads it with `skiprows=1`; `comment="#"` would cut FILE#RECORD.
    """
    file.write(f"# {NOTICE}\n")
    table = None
    for row in rows:
        flat = dict(row)
        names, embedding = flat.pop("findings", []), flat.pop("embedding", None)
        similarity = dict(zip(names, flat.pop("similarities", []), strict=True))
        probability = dict(zip(names, flat.pop("probabilities", []), strict=True))
        verdict = dict(zip(names, flat.pop("verdicts", []), strict=True))
        flat |= {f"similarity: {name}": similarity.get(name) for name in classes}
        flat |= {f"probability: {name}": probability.get(name) for name in classes}
        flat |= {f"verdict: {name}": verdict.get(name) for name in classes}
        flat |= {f"embedding {index}": float(x) for index, x in enumerate(() if embedding is None else embedding)}
        flat = {name: "; ".join(value) if isinstance(value, list) else value for name, value in flat.items()}
        if table is None:
            table = csv.DictWriter(file, list(flat))
            table.writeheader()
        table.writerow(flat)


def no_probabilities(calibration: str | None) -> str:
    """Returns why there are similarities alone: what `Predictor.calibration` says, or that such were not measured."""
    return calibration or NOT_CALIBRATED.replace(":", " for such recordings:")


def as_text(row: dict, calibration: str | None, windows: int) -> str:
    """Returns a recording's, or a window's, predictions for the screen."""
    title = f"{row['record']}  ({row['path']})"
    if windows > 1:
        title += f", window {row['window'] + 1} of {windows}, from {row['start']:g} s"
    lines = [title, "-" * min(len(title), 100)]
    if findings := row.get("findings"):
        width = max(map(len, findings[:SHOWN]))
        columns = [
            ("similarity", [None if value is None else f"{value:.3f}" for value in row["similarities"]]),
            ("probability", [None if value is None else f"{value:.1%}" for value in row["probabilities"]]),
            ("verdict", row["verdicts"]),
        ]
        columns = [(title, values) for title, values in columns if any(values) or title == "similarity"]
        lines.append(f"  {'finding':{width}}" + "".join(f"  {title:>11}" for title, _ in columns))
        for place, name in enumerate(findings[:SHOWN]):
            cells = "".join(f"  {values[place] or '':>11}" for _, values in columns)
            lines.append(f"  {name:{width}}{cells}".rstrip())
        if len(findings) > SHOWN:
            lines.append(f"  ... and {len(findings) - SHOWN} more")
        pairs = zip(findings, row["probabilities"], strict=True)
        if bare := [name for name, probability in pairs if probability is None]:
            some = "" if len(bare) == len(findings) else f"{', '.join(bare)}: "
            lines.append(f"  ({some}{no_probabilities(calibration)})")
    if row.get("left_out"):
        lines.append(f"  cannot be told from {row['condition']}: {', '.join(row['left_out'])}")
    if "draft" in row:
        lines.append(f"  draft: {row['draft'] or '(empty)'}")
    leads = len(row["leads"])
    lines.append(f"  signal: {row['seconds']:g} s, {row['sampling_rate']:g} Hz, {leads} lead{'s' * (leads != 1)}")
    lines += [f"  warning: {warning}" for warning in row["warnings"]]
    if row["flat_leads"]:
        lines.append(f"  warning: flat: {', '.join(row['flat_leads'])}")
    return "\n".join([*lines, f"  done: {'; '.join(row['done'])}"])
