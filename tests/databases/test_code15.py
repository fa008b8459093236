"""CODE-15%: tracings are joined to their exams, without padding, from parts in any order."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from database_files import reasons_of, rows_of, some_ecg, write_csv

from melp.databases import code15
from melp.prepare.folder import prepare

NATIVE = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py")


@pytest.mark.real_data
def test_code15_joins_by_exam_and_takes_the_padding_off(ecg_data, tmp_path, h5py):
    from scipy.io import loadmat

    rows = rows_of(prepare("code15", tmp_path / "out", root=ecg_data / "code15"))
    table = pd.read_csv(ecg_data / "code15/exams.csv")
    assert set(rows) == set(table["exam_id"].astype(str)) and not reasons_of(tmp_path / "out")
    lengths = Counter()
    for line in table.to_dict("records"):
        row, record = rows[str(line["exam_id"])], str(line["exam_id"])
        assert row["patient"] == str(line["patient_id"]) and row["age"] == line["age"]
        assert row["code15"] == {name for name in code15.CLASSES if line[name]}
        assert row["normal_ecg"] == line["normal_ecg"] and row["sex"] == ("male" if line["is_male"] else "female")
        trimmed = loadmat(ecg_data / f"code15/trimmed/code_15_{record}.mat")["feats"]
        item = {"record": record, "patient": "", "path": str(ecg_data / "code15/exams_sample.hdf5"), "unit": 0.1}
        with h5py.File(item["path"]) as file:
            item["row"] = file["exam_id"][:].tolist().index(line["exam_id"])
        read = code15.read(item)
        assert read.signal.shape == trimmed.shape and read.leads == NATIVE and read.sampling_rate == 400
        np.testing.assert_allclose(read.signal / read.gain[:, None], trimmed * 0.1, atol=0.0011)
        lengths[trimmed.shape[1]] += 1
        assert len(row["mv"]["I"]) == pytest.approx(trimmed.shape[1] * 500 / 400, abs=1)
    assert lengths == {2934: 6, 4096: 4}


def test_code15_parts_in_any_order_missing_and_broken(tmp_path, h5py):
    signal = some_ecg()[:, :4096].T / 1000
    padded = signal.copy()
    padded[:500] = padded[-662:] = 0

    def write(name, exams, tracings):
        with h5py.File(tmp_path / name, "w") as file:
            file["exam_id"] = exams
            file["tracings"] = np.stack(tracings).astype(np.float32)

    write("exams_part0.hdf5", [30, 10, 0], [signal, padded, np.zeros_like(signal)])  # the extra row
    write("exams_part1.hdf5", [40, 50, 0], [np.zeros_like(signal), signal, np.zeros_like(signal)])
    (tmp_path / "exams_part2.hdf5").write_bytes((tmp_path / "exams_part1.hdf5").read_bytes()[:5000])
    line = dict.fromkeys(code15.CLASSES, "False") | {"age": 50, "is_male": "True", "normal_ecg": "True"}
    parts = {10: 0, 30: 0, 40: 1, 50: 1, 60: 2, 70: 3}
    exams = [
        line | {"exam_id": exam, "patient_id": exam // 20, "trace_file": f"exams_part{part}.hdf5", "AF": exam == 50}
        for exam, part in parts.items()
    ]
    write_csv(tmp_path / "exams.csv", exams)
    rows = rows_of(prepare("code15", tmp_path / "out", root=tmp_path))
    assert {record: len(row["mv"]["I"]) for record, row in rows.items()} == {"10": 3668, "30": 5120, "50": 5120}
    assert rows["50"]["code15"] == {"AF"} and rows["30"]["code15"] == set()
    reasons = reasons_of(tmp_path / "out")
    assert set(reasons) == {"40", "60", "70"}
    for record, words in {
        "40": "no signal",
        "60": "cannot be opened: exams_part2.hdf5",
        "70": "none of the parts",
    }.items():
        assert words in reasons[record]
    write("exams_part3.hdf5", [70, 10], [signal, signal])
    code15.open_part.cache_clear()
    with pytest.raises(ValueError, match="exam 10 is in two parts"):
        prepare("code15", tmp_path / "twice", root=tmp_path)
