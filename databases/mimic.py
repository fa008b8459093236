"""MIMIC-IV-ECG 1.0: 800,035 recordings of about 160,000 subjects, 12 leads, 10 s at 500 Hz, with a cart's report each.

Source: PhysioNet, doi:10.13026/4nqg-sb35. Facts this module encodes: `record_list.csv` (subject_id, study_id,
file_name, ecg_time, path) lists the recordings, `machine_measurements.csv` has, by study_id, the cart's report in the
cells `report_0` to `report_17` (blank ones between filled ones) and its measurements, in ms, where 29999, 65535 and
+-32767 stand for none.

Reports: the filled cells, each a sentence, in lower case, EKG written ecg, without the carts' ornaments (`***`, `=-`)
around them; one of fewer than four words is rejected, as in the published training. Neither split nor labels are
published: a seeded hash of the subject puts 98% into train and 2% into validation.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from databases import EcgRecord
from databases.tables import add_seed, plan_table, required_files, seeded_split
from databases.wfdb_record import wfdb_item

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
    texts = read_table(measurements, ["study_id", "report_0"], [f"report_{i}" for i in range(1, 18)] + list(_MEASURED))
    row = pc.index_in(records["study_id"], value_set=texts["study_id"])
    columns = {"report": join_reports(texts), **measure(texts)}
    del texts
    columns = {name: column.take(row) for name, column in columns.items()}
    words = pc.add(pc.count_substring(columns["report"], " "), 1)
    reject = pc.case_when(
        pc.make_struct(
            pc.is_null(row),
            pc.equal(columns["report"], ""),
            pc.less(words, MIN_WORDS),
        ),
        f"not in {FILES[1]}",
        "no report",
        f"its report has fewer than {MIN_WORDS} words",
        pa.scalar(None, pa.string()),
    )
    patients = pc.cast(records["subject_id"], pa.string())
    shares = {"train": 1 - validation_share, "validation": validation_share}
    columns |= {
        "record": pc.cast(records["study_id"], pa.string()),
        "patient": patients,
        "split": pa.array(seeded_split(patients.to_pylist(), seed, shares)),
        "reject": reject,
        "path": pc.binary_join_element_wise(str(root), records["path"], "/"),
    }
    return plan_table(columns, LABEL_SETS)


def read_table(path: Path, needed: list[str], optional: list[str] = ()) -> pa.Table:
    """Columns of a table: ids as integers, measurements as numbers, all else as text; optional ones where they exist."""
    with open(path, encoding="utf-8") as file:
        header = file.readline().strip().split(",")
    if missing := [name for name in needed if name not in header]:
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(header)}.")
    names = needed + [name for name in optional if name in header]
    types = {name: pa.int64() for name in names if name.endswith("_id")}
    types |= {name: pa.float32() for name in names if name in _MEASURED}
    convert = pyarrow.csv.ConvertOptions(
        include_columns=names, column_types={name: types.get(name, pa.string()) for name in names}
    )
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    table = pyarrow.csv.read_csv(path, parse_options=parse, convert_options=convert)
    studies = table["study_id"]
    if pc.count_distinct(studies).as_py() != len(studies):
        twice = pc.value_counts(studies).filter(pc.field("counts") > 1)
        raise ValueError(f"{path}: study {twice[0]['values']} stands there twice.")
    return table


def join_reports(texts: pa.Table) -> pa.ChunkedArray:
    """The cleaned report of every row; "" where all its cells are blank."""
    cells = []
    for name in (name for name in texts.column_names if name.startswith("report_")):
        cell = pc.replace_substring_regex(pc.utf8_lower(texts[name]), r"\s+", " ")
        cell = pc.utf8_trim(pc.replace_substring(cell, "ekg", "ecg"), " *=-")
        cell = pc.utf8_rtrim(cell, " .")
        cells.append(pc.if_else(pc.equal(cell, ""), None, cell))
    report = pc.binary_join_element_wise(*cells, ". ", null_handling="skip")
    return pc.if_else(pc.equal(report, ""), "", pc.binary_join_element_wise(report, "", "."))


def measure(texts: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Heart rate (bpm), intervals (ms) and QRS axis (degrees); null where one is not measured or not positive."""
    points = {}
    for name in _MEASURED:
        if name in texts.column_names:
            values = texts[name]
            unknown = pc.is_in(values, value_set=pa.array(SENTINELS, pa.float32()))
            points[name] = pc.if_else(unknown, None, values)
        else:
            points[name] = pa.chunked_array([pa.nulls(len(texts), pa.float32())])
    measured = {name: pc.subtract(points[end], points[start]) for name, (start, end) in INTERVALS.items()}
    measured["heart_rate"] = pc.divide(60000.0, points["rr_interval"])
    positive = {name: pc.if_else(pc.greater(value, 0), value, None) for name, value in measured.items()}
    finite = {name: pc.if_else(pc.is_finite(value), value, None) for name, value in positive.items()}
    return {**finite, "qrs_axis": points["qrs_axis"]}


def read(item: dict) -> EcgRecord:
    return wfdb_item(item, EXTRA)
