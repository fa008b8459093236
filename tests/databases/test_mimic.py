"""MIMIC-IV-ECG: reports cleaned, splits by subject, every refusal named, planned whole in little memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from conftest import REPO
from database_files import reasons_of, rows_of, some_ecg, write_csv, write_record

from melp.databases import mimic
from melp.prepare.folder import prepare

CELLS = {
    1: ["Sinus rhythm", "", "  ", "Normal EKG"],
    2: ["*** Poor data quality ***", "Atrial fibrillation."],
    3: ["Sinus rhythm"],  # too short
    4: ["", ""],  # no report
    6: ["Sinus rhythm", "Left axis deviation"],
    7: ["Sinus bradycardia", "Borderline ECG"],
    8: ["sinus tachycardia, rate 120", "ABNORMAL ECG"],
}


@pytest.fixture
def mimic_root(tmp_path) -> Path:
    """Eight studies of four subjects: 5 has no measurements, 6 has NaN, 7 an all-zero lead, 8 no file."""
    root = tmp_path / "mimic"
    root.mkdir()
    records, measured = [], []
    for study in range(1, 9):
        path = f"files/p1000/p{study // 2}/s{study}/{study}"
        records.append(
            {"subject_id": study // 2, "study_id": study, "file_name": study, "ecg_time": "2180", "path": path}
        )
        if study in CELLS:
            cells = {f"report_{i}": text for i, text in enumerate(CELLS[study] + [""] * (18 - len(CELLS[study])))}
            points = {"rr_interval": 1000, "p_onset": 40, "p_end": 128, "qrs_onset": 170, "qrs_end": 258, "t_end": 570}
            points |= {2: {"p_onset": 29999, "rr_interval": 65535}, 7: {"t_end": -32767}}.get(study, {})
            measured.append({"subject_id": study // 2, "study_id": study, **cells, **points, "qrs_axis": 81})
        signal = some_ecg(study)
        if study == 6:
            signal[3, 100:200] = -32768
        if study == 7:
            signal[7] = 0
        if study != 8:
            write_record(root / path, signal)
    write_csv(root / "record_list.csv", records)
    write_csv(root / "machine_measurements.csv", measured[::-1])
    return root


def test_mimic_cleans_reports_and_names_every_rule(mimic_root, tmp_path):
    rows = rows_of(prepare("mimic", tmp_path / "out", root=mimic_root, validation_share=0.5))
    reasons = reasons_of(tmp_path / "out")
    assert set(rows) == {"1", "2", "7"}
    assert rows["1"]["report"] == "sinus rhythm. normal ecg."
    assert rows["2"]["report"] == "poor data quality. atrial fibrillation."
    assert reasons.pop("3") == "its report has fewer than 4 words" and reasons.pop("4") == "no report"
    assert reasons.pop("5") == "not in machine_measurements.csv"
    assert (
        reasons.pop("6") == "missing samples (NaN): 100 in lead aVR"
        and reasons.pop("8") == "no header: 8.hea"
        and not reasons
    )
    measured = ("heart_rate", "pr_interval", "qrs_duration", "qt_interval", "qrs_axis")
    assert [rows["1"][name] for name in measured] == [60, 130, 88, 400, 81]
    assert [rows["2"][name] for name in measured] == [None, None, 88, 400, 81]
    assert rows["7"]["qt_interval"] is None and not rows["7"]["mv"]["V2"].any()
    assert rows["1"]["signal"] == some_ecg(1).astype("<i2").tobytes() and rows["1"]["patient"] == "0"


def test_mimic_splits_by_subject(mimic_root):
    def split_of(seed, share=0.5):
        table = mimic.plan(mimic_root, seed=seed, validation_share=share)
        return dict(zip(table["patient"].to_pylist(), table["split"].to_pylist(), strict=True))

    assert split_of(0) == split_of(0) and len({str(split_of(seed)) for seed in range(8)}) > 1
    assert set(split_of(0, 0.0).values()) == {"train"}
    with pytest.raises(ValueError, match="not a share"):
        mimic.plan(mimic_root, validation_share=2.0)


def test_mimic_tables_that_lack_or_repeat_something_are_refused(mimic_root):
    measured = (mimic_root / "machine_measurements.csv").read_text().splitlines()
    (mimic_root / "machine_measurements.csv").write_text("\n".join([*measured, measured[-1]]))
    with pytest.raises(ValueError, match="machine_measurements.csv: study 1 is listed twice"):
        mimic.plan(mimic_root)
    (mimic_root / "record_list.csv").write_text("subject_id,study_id\n1,1\n")
    with pytest.raises(ValueError, match="record_list.csv has no column path"):
        mimic.plan(mimic_root)


LIST = b"subject_id,study_id,path\n"


@pytest.mark.parametrize("content", [LIST + b"1,2\n", LIST + b"1,x,p\n", b"\xff\xfe\x00"])
def test_a_damaged_list_of_mimic_is_named(tmp_path, content):
    (tmp_path / "record_list.csv").write_bytes(content)
    (tmp_path / "machine_measurements.csv").write_text("study_id,report_0\n2,sinus rhythm of a heart\n")
    with pytest.raises(ValueError, match=r"record_list\.csv"):
        prepare("mimic", tmp_path / "out", root=tmp_path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc, which tells the peak of memory")
@pytest.mark.slow
def test_mimic_is_planned_at_its_size_under_a_gigabyte(tmp_path):
    size = 800_035
    study = pa.array(np.arange(40_000_000, 40_000_000 + size))
    ids = {"subject_id": pa.array(10_000_000 + np.arange(size) // 5), "study_id": study}
    path = pa.compute.binary_join_element_wise("files/p1000/p10000032", study.cast(pa.string()), "/s")
    pyarrow.csv.write_csv(pa.table({**ids, "path": path}), tmp_path / "record_list.csv")
    cells = [
        "Atrial fibrillation with rapid ventricular response",
        "",
        "Left axis deviation",
        "Abnormal EKG",
        *[""] * 14,
    ]
    texts = {f"report_{i}": pa.repeat(text, size) for i, text in enumerate(cells)}
    points = {name: pa.repeat(100 * i, size) for i, name in enumerate(mimic._MEASURED, 1)}
    pyarrow.csv.write_csv(pa.table({**ids, **texts, **points}), tmp_path / "machine_measurements.csv")
    code = (
        "import re, sys; from melp.databases import mimic; table = mimic.plan(sys.argv[1]);"
        "peak = re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1];"
        "print(len(table), table['reject'].null_count, peak)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=REPO, capture_output=True, text=True)
    planned, kept, kilobytes = map(int, done.stdout.split())
    assert planned == kept == size and kilobytes < 1_000_000
