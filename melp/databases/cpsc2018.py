"""CPSC2018 (ICBEB): 6,877 recordings, 12 leads, 6 to 144 s at 500 Hz, nine classes.

Source: F. Liu et al., Journal of Medical Imaging and Health Informatics 8, 1368 (2018), and PhysioNet's
redistribution, under CC BY 4.0, in the Challenges 2020 and 2021. Facts this module encodes, for the two forms in
which it is found:

- the Challenge's: `gN/A####.{hea,mat}`, WFDB, with SNOMED CT codes ("Dx:"), age and sex in the header's comments;
- the competition's: `A####.mat`, a MATLAB struct `ECG` of `sex`, `age` and `data` (12 x samples, mV, leads I, II,
  III, aVR, aVL, aVF, V1 to V6, 500 Hz), and `REFERENCE.csv` (Recording, First_label, Second_label, Third_label; 1 to
  9 in the order of `databases.snomed.CPSC2018`).

Which one a folder holds is seen from its headers. Label set `cpsc2018`, by the benchmark's class names. No patients
and no split are published: each record is a patient of its own, a seeded hash of its name puts it into train,
validation or test (80/10/10), unless `--splits` gives the benchmark's tables. There are no reports.
"""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from melp.databases import EcgRecord
from melp.databases.published import add_splits, apply_tables, table_files
from melp.databases.snomed import CPSC2018, add_reports, classes_of, describe
from melp.databases.tables import add_seed, label_sets, plan_table, read_csv, record_of, seeded_split
from melp.databases.wfdb_record import find_records, header_files, quantise, read_headers, reading, stored_item
from signal_melp import USUAL_LEADS

__all__ = ["EXTRA", "SOURCE", "VERSION", "add_arguments", "inputs", "label_sets", "plan", "read"]

VERSION = 1
EXTRA = {"age": "float32", "sex": "string"}
SOURCE = {
    "name": "China Physiological Signal Challenge 2018 (CPSC2018, ICBEB)",
    "version": "2018",
    "licence": "CC BY 4.0",
    "citation": "F. Liu et al., J. Med. Imaging Health Inform. 8(7), 1368-1373 (2018), doi:10.1166/jmihi.2018.2442",
    "url": "http://2018.icbeb.org/Challenge.html",
}
NATIVE_RATE = 500


def add_arguments(parser):
    add_reports(parser)
    add_splits(parser)
    add_seed(parser)


def inputs(root, *, splits: str | None = None, **_) -> list[Path]:
    return find_reference(root) + header_files(root) + (table_files(splits, "cpsc2018") if splits else [])


def find_reference(root) -> list[Path]:
    """Returns the path of the competition's table of labels, or None."""
    return sorted(Path(root).rglob("REFERENCE.csv"))[:1]


def plan(root, *, reports: str = "none", splits: str | None = None, seed: int = 0) -> pa.Table:
    """Raises ValueError when the folder holds no records, both forms of them, or nothing that labels them."""
    frame = read_headers(find_records(root))
    native = not any(os.path.isfile(f"{path}.hea") for path in frame["path"])
    if frame["record"].duplicated().any():
        record = frame["record"][frame["record"].duplicated()].iloc[0]
        raise ValueError(f"{root} holds record {record} twice: --root is the folder of one form of CPSC2018.")
    codes = frame.pop("codes")
    if native:
        references = find_reference(root)
        if not references and not splits:
            raise ValueError(f"{root} has neither headers nor REFERENCE.csv: add that table, or give --splits.")
        codes = frame["record"].map(reference_codes(references[0])) if references else codes
        codes = codes.astype(object).where(codes.notna(), None)
    frame["native"] = native
    frame["patient"] = frame["record"]
    frame["split"] = seeded_split(frame["record"], seed)
    frame["report"] = [describe(row) if reports == "statements" else "" for row in codes]
    frame["cpsc2018"] = [classes_of(row, CPSC2018) for row in codes]
    sets = {"cpsc2018": list(CPSC2018.values())}
    if splits:
        sets |= apply_tables(frame, splits, "cpsc2018")
    return plan_table(frame, sets, split_by_record=not splits)


def reference_codes(path: Path) -> dict[str, list[str]]:
    """Reads each recording's codes from the competition's table. Raises ValueError naming a label outside 1 to 9."""
    table = read_csv(path)
    numbers, codes = table.iloc[:, 1:4].to_numpy(dtype=float), list(CPSC2018)
    if not np.isin(numbers[~np.isnan(numbers)], np.arange(1, 10)).all():
        raise ValueError(f"{path}: a label is not one of 1 to 9.")
    lists = [[codes[int(number) - 1] for number in row if not np.isnan(number)] for row in numbers]
    return dict(zip(table.iloc[:, 0].astype(str).str.strip(), lists, strict=True))


def read(item: dict) -> EcgRecord:
    return _read_native(item) if item["native"] else stored_item(item, EXTRA)


def _read_native(item: dict) -> EcgRecord:
    from scipy.io import loadmat

    with reading(item["record"]):
        struct = loadmat(item["path"] + ".mat")["ECG"][0, 0]
        data, age, sex = (struct[name] for name in ("data", "age", "sex"))
    if data.ndim != 2 or data.shape[0] != len(USUAL_LEADS) or data.shape[1] == 0:
        raise ValueError(f"{item['record']}: not 12 leads x samples: data of shape {data.shape}")
    signal, gain, baseline = quantise(data.astype(float))
    samples = {"leads": list(USUAL_LEADS), "sampling_rate": NATIVE_RATE, "gain": gain, "baseline": baseline}
    known = {
        "age": float(age.item()) if age.size == 1 else None,
        "sex": {"M": "male", "F": "female"}.get(str(sex.item())[:1].upper()) if sex.size == 1 else None,
    }
    return record_of(item | known, {"signal": signal, **samples}, EXTRA)
