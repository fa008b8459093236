"""MIMIC-IV-ECG 1.0: 800,035 recordings of about 160,000 subjects, 12 leads, 10 s at 500 Hz, with a cart's report each.

Source: PhysioNet, doi:10.13026/4nqg-sb35. Facts this module encodes: `record_list.csv` (subject_id, study_id,
file_name, ecg_time, path) lists the recordings, `machine_measurements.csv` has, by study_id, the cart's report in the
cells `report_0` to `report_17` (blank ones between filled ones) and its measurements, in ms, where 29999, 65535 and
+-32767 stand for none.

Reports: the filled cells, each a sentence, in lower case, EKG written ecg, without the carts' ornaments (`***`, `=-`)
around them; one of fewer than four words is rejected, as in the published training. Neither split nor labels are
published: a seeded hash of the subject puts 98% into train and 2% into validation.

About 1.5% of the recordings have NaN, and are rejected (or interpolated), or a lead of zeros, and are kept: the model
reads a constant row. `row["quality"]["flat_leads"]` names the lead for who would rather leave these recordings out.
"""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from melp.databases import EcgRecord
from melp.databases.tables import add_seed, plan_table, required_files, seeded_split
from melp.databases.wfdb_record import stored_item

VERSION = 1
LABEL_SETS: dict[str, list[str]] = {}
SOURCE = {
    "name": "MIMIC-IV-ECG: Diagnostic Electrocardiogram Matched Subset",
    "version": "1.0",
    "licence": "ODbL 1.0",
    "citation": "B. Gow et al., MIMIC-IV-ECG (version 1.0), PhysioNet (2023), doi:10.13026/4nqg-sb35",
    "url": "https://doi.org/10.13026/4nqg-sb35",
}
FILES = ("record_list.csv", "machine_measurements.csv")
SENTINELS = (29999, 32767, -32767, 65535)
MIN_WORDS = 4
# Interval in ms -> the two fiducial points between which it lies.
INTERVALS = {
    "pr_interval": ("p_onset", "qrs_onset"),
    "qrs_duration": ("qrs_onset", "qrs_end"),
    "qt_interval": ("qrs_onset", "t_end"),
}
EXTRA = dict.fromkeys(["heart_rate", *INTERVALS, "qrs_axis"], "float32")
_MEASURED = ("rr_interval", "p_onset", "qrs_onset", "qrs_end", "t_end", "qrs_axis")


def add_arguments(parser):
    parser.add_argument("--validation-share", type=float, default=0.02, help="of the subjects (default 0.02)")
    add_seed(parser, "of the split by subject")


def inputs(root, **_) -> list[Path]:
    return required_files(root, FILES, "MIMIC-IV-ECG")


def plan(root, *, validation_share: float = 0.02, seed: int = 0) -> pa.Table:
    """Raises ValueError naming the table or column that is missing, or the study that a table lists twice."""
    if not 0 <= validation_share < 1:
        raise ValueError(f"--validation-share {validation_share} is not a share between 0 and 1.")
    record_list, measurements = inputs(root)
    records = read_table(record_list, ["subject_id", "study_id", "path"])
    cells = [f"report_{number}" for number in range(1, 18)]
    texts = read_table(measurements, ["study_id", "report_0"], [*cells, *_MEASURED], _clean)
    row = pc.index_in(records["study_id"], value_set=texts["study_id"])
    columns = {name: texts[name].take(row) for name in ("report", *EXTRA)}
    del texts
    words = pc.add(pc.count_substring(columns["report"], " "), 1)
    reasons = {
        f"not in {FILES[1]}": pc.is_null(row),
        "no report": pc.equal(columns["report"], ""),
        f"its report has fewer than {MIN_WORDS} words": pc.less(words, MIN_WORDS),
    }
    conditions = pc.make_struct(*[pc.fill_null(condition, False) for condition in reasons.values()])
    subjects = pc.unique(records["subject_id"])
    shares = {"train": 1 - validation_share, "validation": validation_share}
    columns |= {
        "record": pc.cast(records["study_id"], pa.string()),
        "patient": pc.cast(records["subject_id"], pa.string()),
        "reject": pc.case_when(conditions, *reasons, pa.scalar(None, pa.string())),
        "path": pc.binary_join_element_wise(str(root), records["path"], "/"),
    }
    split = pa.array(seeded_split(pc.cast(subjects, pa.string()).to_pylist(), seed, shares))
    columns["split"] = split.take(pc.index_in(records["subject_id"], value_set=subjects))
    return plan_table(columns, LABEL_SETS)


def read_table(path: Path, needed: list[str], optional: Sequence[str] = (), clean: Callable | None = None) -> pa.Table:
    """Reads columns of a table, `clean`ed block by block: the text of all the report's cells is never held at once.

    Ids are integers, measurements numbers, all else text; optional columns are read where they exist.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file), [])
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no CSV table in UTF-8: {error}.") from error
    if missing := [name for name in needed if name not in header]:
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(header)}.")
    names = needed + [name for name in optional if name in header]
    types = {name: pa.int64() for name in names if name.endswith("_id")}
    types |= {name: pa.float32() for name in names if name in _MEASURED}
    try:
        reader = pyarrow.csv.open_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(block_size=1 << 22, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=names, column_types={name: types.get(name, pa.string()) for name in names}
            ),
        )
        blocks = (pa.Table.from_batches([batch]) for batch in reader)
        table = pa.concat_tables([clean(block) if clean else block for block in blocks])
    except pa.ArrowInvalid as error:  # a row of other cells, a cell of another kind
        raise ValueError(f"{path}: {error}; correct it, or fetch it again.") from error
    studies = pc.value_counts(table["study_id"]) if pc.count_distinct(table["study_id"]).as_py() < len(table) else ()
    for study in studies:
        if study["counts"].as_py() > 1:
            raise ValueError(f"{path}: study {study['values']} is listed twice.")
    return table


def _clean(texts: pa.Table) -> pa.Table:
    return pa.table({"study_id": texts["study_id"], "report": join_reports(texts), **measure(texts)})


def join_reports(texts: pa.Table) -> pa.ChunkedArray:
    """Returns the cleaned report of every row; "" where all its cells are blank."""
    cells = []
    for name in (name for name in texts.column_names if name.startswith("report_")):
        cell = pc.utf8_rtrim(pc.utf8_trim(texts[name], " *=-\t\r\n"), " .")
        cells.append(pc.if_else(pc.equal(cell, ""), None, cell))
    # The empty last cell gives the last sentence its stop, and a row of blank cells a result at all.
    report = pc.utf8_lower(pc.binary_join_element_wise(*cells, "", ". ", null_handling="skip"))
    report = pc.replace_substring_regex(report, r"\s+", " ")
    return pc.utf8_rtrim(pc.replace_substring(report, "ekg", "ecg"), " ")


def measure(texts: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Returns heart rate (bpm), intervals (ms) and QRS axis (degrees); null where not measured or not positive."""
    points = {}
    for name in _MEASURED:
        if name in texts.column_names:
            unknown = pc.is_in(texts[name], value_set=pa.array(SENTINELS, pa.float32()))
            points[name] = pc.if_else(unknown, None, texts[name])
        else:
            points[name] = pa.chunked_array([pa.nulls(len(texts), pa.float32())])
    measured = {name: pc.subtract(points[end], points[start]) for name, (start, end) in INTERVALS.items()}
    measured["heart_rate"] = pc.divide(60000.0, points["rr_interval"])
    # Not positive, or a division by 0: not measured.
    real = {name: pc.and_(pc.greater(column, 0), pc.is_finite(column)) for name, column in measured.items()}
    columns = {name: pc.if_else(real[name], column, None) for name, column in measured.items()}
    columns["qrs_axis"] = points["qrs_axis"]
    return {name: pc.cast(column, pa.float32()) for name, column in columns.items()}


def read(item: dict) -> EcgRecord:
    return stored_item(item, EXTRA)
