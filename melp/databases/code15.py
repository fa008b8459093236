"""CODE-15% (Zenodo, doi:10.5281/zenodo.4916206): 345,779 exams, 12 leads, 400 Hz, six abnormalities.

Source: Ribeiro et al., Nature Communications 11, 1760 (2020), and the dataset's page. Facts this module encodes:
`exams.csv` has a row per exam (`exam_id`, `patient_id`, `age`, `is_male`, six columns of True and False, `normal_ecg`,
`trace_file`), in another order than the signals; the parts, `exams_part*.hdf5`, hold `exam_id` (n) and `tracings` (n
x 4096 x 12, leads I, II, III, aVR, aVL, aVF, V1 to V6), each with one row of zeros more than it has exams. Exams are
found by id in whatever part is there; one whose part is not is rejected. Recordings of 7.3 and 10.24 s are padded
with zeros on both sides, which are taken off.

The unit is not settled: the dataset's page speaks of 1e-4 V a unit, the amplitudes look like mV. `--unit` says which
is assumed, mV by default. There are no reports and no split: a seeded hash of the patient puts all of a patient's
exams into train, validation or test (80/10/10).
"""

import functools
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from melp.databases import EcgRecord
from melp.databases.tables import add_seed, plan_table, read_csv, record_of, required_files, seeded_split
from melp.databases.wfdb_record import quantise, reading
from signal_melp import USUAL_LEADS

VERSION = 1
CLASSES = ["1dAVb", "RBBB", "LBBB", "SB", "AF", "ST"]
LABEL_SETS = {"code15": CLASSES}
COLUMNS = ("exam_id", "patient_id", "trace_file", "age", "is_male", "normal_ecg", *CLASSES)
EXTRA = {"age": "float32", "sex": "string", "normal_ecg": "bool"}
SOURCE = {
    "name": "CODE-15%: a large scale annotated dataset of 12-lead ECGs",
    "version": "1.0.0",
    "licence": "CC BY 4.0",
    "citation": "A. H. Ribeiro et al., Nature Communications 11, 1760 (2020), doi:10.1038/s41467-020-15432-4",
    "url": "https://doi.org/10.5281/zenodo.4916206",
}
SAMPLING_RATE = 400
UNITS = {"mV": 1.0, "0.1mV": 0.1}  # mV a unit


def add_arguments(parser):
    parser.add_argument("--unit", choices=tuple(UNITS), default="mV", help="of the tracings (default mV; see above)")
    add_seed(parser)


def inputs(root, **_) -> list[Path]:
    return required_files(root, ["exams.csv"], "CODE-15%")


def plan(root, *, unit: str = "mV", seed: int = 0) -> pa.Table:
    """Raises ValueError when `exams.csv` or every part is missing, or when an exam is in two parts."""
    table = read_csv(inputs(root)[0], COLUMNS)
    rows, broken = find_tracings(Path(root))
    rows = rows.reindex(table["exam_id"])
    has_signal = rows["row"].notna().to_numpy()
    reasons = (
        table["trace_file"].map(broken).astype(object).fillna("its signal is in none of the parts of this folder")
    )
    truth = {"true": True, "false": False}  # blanks are unknown
    flags = table[[*CLASSES, "is_male", "normal_ecg"]].map(lambda cell: truth.get(str(cell).strip().lower()))
    patients = table["patient_id"].astype("Int64").astype("string")
    columns = {
        "record": table["exam_id"].astype(str),
        "patient": patients,
        "split": seeded_split(patients, seed),
        "reject": reasons.mask(has_signal),
        "path": rows["path"].to_numpy(),
        "row": pa.array(rows["row"], pa.int64(), from_pandas=True),
        "unit": np.full(len(table), UNITS[unit]),
        "code15": [
            [name for name, is_one in zip(CLASSES, row, strict=True) if is_one] for row in flags[CLASSES].to_numpy()
        ],
        "age": table["age"].astype(float),
        "sex": flags["is_male"].map({True: "male", False: "female"}),
        "normal_ecg": flags["normal_ecg"],
    }
    return plan_table(columns, LABEL_SETS)


def find_tracings(root: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """Returns `path` and `row` of every exam id in the parts, and the reason for each part that cannot be opened."""
    frames, broken = [], {}
    parts = sorted(root.glob("*.hdf5"))
    if not parts:
        raise ValueError(f"{root} has no exams_part*.hdf5; --root is the folder with exams.csv and the parts.")
    for path in parts:
        try:
            with reading(path.name):
                ids = open_part(str(path))["exam_id"][:]
        except (OSError, ValueError):
            broken[path.name] = f"its part cannot be opened: {path.name}; fetch it again"
            continue
        frames.append(pd.DataFrame({"path": str(path), "row": np.arange(len(ids))}, index=ids))
    rows = pd.concat(frames) if frames else pd.DataFrame({"path": [], "row": []})
    rows = rows[rows.index != 0]  # the extra row
    if rows.index.duplicated().any():
        raise ValueError(f"{root}: exam {rows.index[rows.index.duplicated()][0]} is in two parts, or twice in one.")
    return rows, broken


@functools.lru_cache(maxsize=2)
def open_part(path: str):
    try:
        import h5py
    except ImportError as error:
        raise ImportError("CODE-15% is stored in HDF5 files: pip install '.[code15]' (h5py)") from error
    return h5py.File(path, "r")


def read(item: dict) -> EcgRecord:
    """Reads one exam: only its row of its part."""
    with reading(item["record"]):
        tracing = open_part(item["path"])["tracings"][item["row"]]
    used = np.flatnonzero(tracing.any(axis=1))
    if tracing.shape[-1] != len(USUAL_LEADS) or len(used) == 0:
        raise ValueError(f"{item['record']}: no signal of 12 leads: its tracing, of shape {tracing.shape}")
    signal, gain, baseline = quantise(tracing[used[0] : used[-1] + 1].T.astype(float) * item["unit"])
    samples = {"signal": signal, "gain": gain, "baseline": baseline}
    return record_of(item, {**samples, "leads": list(USUAL_LEADS), "sampling_rate": SAMPLING_RATE}, EXTRA)
