"""A table of the user's own: every format, records of a stack, what files do not say, tables that are wrong."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import wfdb
from database_files import counts, rows_of, write_record
from database_files import some_ecg as synthetic_ecg
from database_files import write_csv as write_manifest

from melp.data.prepared import load_prepared
from melp.databases import manifest
from melp.databases.tables import label_sets
from melp.databases.wfdb_record import MISSING, read_stored
from melp.prepare.__main__ import main
from melp.prepare.folder import prepare
from signal_melp import LEADS

USUAL_ORDER = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]


def some_ecg(samples=2500, seed=0):
    """(12, samples) in mV whose limb leads agree, on a grid of 2.5 microvolts."""
    generator = np.random.default_rng(seed)
    signal = np.cumsum(generator.integers(-8, 9, (12, samples)), axis=1) * 0.0025
    signal[2] = signal[1] - signal[0]
    for row, (first, second) in {3: (-0.5, -0.5), 4: (1, -0.5), 5: (-0.5, 1)}.items():
        signal[row] = first * signal[0] + second * signal[1]
    return np.round(signal / 0.0025) * 0.0025


def write_wfdb(path, signal, gain=400.0, initial=0, checksum=0, leads=USUAL_ORDER, unit="mV", rate=500):
    digital = np.rint(signal * gain).astype("<i2")
    path.with_name(path.name + ".dat").write_bytes(digital.T.tobytes())
    lines = [f"{path.name} {len(signal)} {rate} {signal.shape[1]}"]
    for lead, row in zip(leads, digital, strict=True):
        check = int(row.sum(dtype=np.int64)) % 65536 + checksum
        lines.append(f"{path.name}.dat 16 {gain}/{unit} 16 0 {row[0] + initial} {check} 0 {lead}")
    path.with_name(path.name + ".hea").write_text("\n".join(lines) + "\n")
    return path


def planned(tmp_path, lines, **options):
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    return manifest.plan(str(tmp_path), csv=str(tmp_path / "table.csv"), **options)


@pytest.fixture
def stacks(tmp_path):
    """The same three recordings as an HDF5 stack, a Parquet file of lists, and one .npy file each."""
    h5py = pytest.importorskip("h5py")
    signals = np.stack([some_ecg(seed=seed) for seed in range(3)]).astype(np.float32)
    with h5py.File(tmp_path / "part.hdf5", "w") as file:
        file["tracings"], file["exam_id"] = signals.swapaxes(1, 2), [11, 12, 13]
        file["tracings"].attrs["sampling_rate"] = 500
    columns = {lead: pa.array(list(signals[:, row])) for row, lead in enumerate(USUAL_ORDER)}
    table = pa.table({"record": ["a", "b", "c"], **columns})
    pq.write_table(table.replace_schema_metadata({"unit": "mV", "sampling_rate": "500"}), tmp_path / "lists.parquet")
    for row, signal in enumerate(signals):
        np.save(tmp_path / f"one{row}.npy", signal)
    return signals


def test_records_of_stacks_and_arrays_are_prepared(tmp_path, stacks):
    table = pd.DataFrame(
        [
            {"record": record, "patient": f"{record[:3]}{row}", "unit": "mV", "rate": rate, "names": names}
            for row in range(3)
            for record, rate, names in (
                (f"part.hdf5#{11 + row}", None, " ".join(USUAL_ORDER)),
                (f"lists.parquet#{'abc'[row]}", None, None),
                (f"one{row}.npy", "500", ",".join(USUAL_ORDER)),
            )
        ]
    )
    table.to_csv(tmp_path / "table.csv", index=False)
    options = ["--csv", str(tmp_path / "table.csv"), "--root", str(tmp_path), "--output", str(tmp_path / "out")]
    main(["manifest", *options, "--column", "sampling_rate=rate", "--column", "leads=names"])
    rows = [row for split in load_prepared(tmp_path / "out").values() for row in split]
    assert len(rows) == 9
    for row in rows:
        name = row["record"]
        index = int(name[-2:]) - 11 if "#1" in name else "abc".index(name[-1]) if "#" in name else int(name[3])
        stored = np.frombuffer(row["signal"], "<i2").reshape(12, -1)
        signal = (stored - np.array(row["baseline"])[:, None]) / np.array(row["gain"])[:, None]
        expected = stacks[index][[USUAL_ORDER.index(lead) for lead in LEADS]]
        np.testing.assert_allclose(signal, expected, atol=6e-4)


def test_options_say_what_no_file_says(tmp_path, stacks):
    lines = ["record,patient", "one0.npy,1", "one1.npy,2"]
    options = {"unit": "mV", "sampling_rate": 500.0, "leads": " ".join(USUAL_ORDER)}
    plan = planned(tmp_path, lines, **options)
    record = manifest.read(plan.to_pylist()[1])
    np.testing.assert_allclose(record.signal / record.gain[:, None], stacks[1], atol=6e-4)
    assert record.sampling_rate == 500 and record.leads == USUAL_ORDER
    for missing, message in (("unit", "unit of lead"), ("sampling_rate", "sampling rate"), ("leads", "the name of")):
        plan = planned(tmp_path, lines, **{name: value for name, value in options.items() if name != missing})
        with pytest.raises(ValueError, match=f"^one0.npy: .*{message}"):
            manifest.read(plan.to_pylist()[0])
    with pytest.raises(ValueError, match="has a column 'unit'; leave out --unit"):
        planned(tmp_path, ["record,patient,unit", "one0.npy,1,mV"], unit="uV")


def test_stored_samples_are_kept_to_the_bit(tmp_path):
    signal = some_ecg()
    path = write_wfdb(tmp_path / "kept", signal)
    fields = read_stored(path)
    assert fields["signal"].dtype == np.int16 and fields["gain"].tolist() == [400.0] * 12
    np.testing.assert_array_equal(fields["signal"], np.rint(signal * 400))
    assert fields["leads"] == USUAL_ORDER and fields["sampling_rate"] == 500
    digital = np.rint(signal * 400).astype("<i2")
    digital[3, 7] = MISSING
    (tmp_path / "kept.dat").write_bytes(digital.T.tobytes())
    assert read_stored(path, verify=False)["signal"][3, 7] == MISSING


def test_a_record_that_contradicts_its_header_is_rejected_unless_accepted(tmp_path):
    for name, initial, checksum in (("good", 0, 0), ("first", 1, 0), ("sum", 0, 1)):
        write_wfdb(tmp_path / name, some_ecg(), initial=initial, checksum=checksum)
    pd.DataFrame({"record": ["good", "first", "sum"], "patient": [1, 2, 3]}).to_csv(tmp_path / "t.csv", index=False)
    options = ["manifest", "--csv", str(tmp_path / "t.csv"), "--root", str(tmp_path), "--output"]
    main([*options, str(tmp_path / "strict")])
    rejected = pd.read_csv(tmp_path / "strict/rejected.csv").set_index("record")["reason"]
    assert set(rejected.index) == {"first", "sum"}
    assert rejected["first"].startswith("header and samples do not belong together: lead I begins with")
    assert rejected["sum"].startswith("wrong checksum: of lead I")
    main([*options, str(tmp_path / "lax"), "--accept-mismatch"])
    assert sum(len(split) for split in load_prepared(tmp_path / "lax").values()) == 3
    assert "--accept-mismatch`" in (tmp_path / "lax/README.md").read_text().replace("\n", "`")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["record,patient", "a,1,x"], "line 2 has 3 cells, its header has 2"),
        (["record,patient,report", "a,1,x", "b,2"], "line 3 has 2 cells"),
        (["record,patient,patient", "a,1,2"], "names the column 'patient' twice"),
        (["record,patient", "x,1", "./x,2"], "'x' and './x' are one recording"),
        (["record,patient", "x,1", "x.hea,2"], "'x' and 'x.hea' are one recording"),
        (["record,patient", "y/../x.dat.gz,1", "x.hea,2"], "are one recording"),
        (["record,patient", "x,1", "x,2"], "record 'x' is named twice"),
        (["record,patient", ",1"], "row 1 has an empty column 'record'"),
        (["record,patient", "x,"], "'x' has no patient"),
        (["record,patient"], "has no rows"),
        ([""], "is empty"),
    ],
)
def test_tables_that_are_wrong_are_refused(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        planned(tmp_path, lines)


def test_a_link_to_a_recording_is_that_recording(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ValueError, match="are one recording"):
        planned(tmp_path, ["record,patient", "real/x,1", "link/x,2"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_in_every_encoding(tmp_path, encoding):
    (tmp_path / "table.csv").write_text("record,patient,report\nx,1,Vorhofflimmern möglich.\n", encoding=encoding)
    plan = manifest.plan(str(tmp_path), csv=str(tmp_path / "table.csv"))
    assert plan["report"].to_pylist() == ["Vorhofflimmern möglich."]


def test_one_patient_in_two_spellings_is_one_patient(tmp_path):
    plan = planned(tmp_path, ["record,patient", "x,15709", "y,15709.0", "z, 15709 "])
    assert plan["patient"].to_pylist() == ["15709"] * 3 and len(set(plan["split"].to_pylist())) == 1


def test_two_samples_per_frame_are_twice_the_rate(tmp_path):
    signal = some_ecg()
    digital = np.rint(signal * 400).astype("<i2").reshape(12, -1, 2)
    (tmp_path / "frames.dat").write_bytes(digital.transpose(1, 0, 2).tobytes())
    lines = ["frames 12 250 1250", *(f"frames.dat 16x2 400/mV 16 0 0 0 0 {lead}" for lead in USUAL_ORDER)]
    (tmp_path / "frames.hea").write_text("\n".join(lines))
    pd.DataFrame({"record": ["frames"], "patient": [1]}).to_csv(tmp_path / "t.csv", index=False)
    folder = prepare("manifest", tmp_path / "out", root=str(tmp_path), csv=str(tmp_path / "t.csv"))
    (row,) = [row for split in load_prepared(folder).values() for row in split]
    stored = np.frombuffer(row["signal"], "<i2").reshape(12, -1) / np.array(row["gain"])[:, None]
    np.testing.assert_allclose(stored, signal[[USUAL_ORDER.index(lead) for lead in LEADS]], atol=1e-6)


def test_facts_come_from_the_table_or_else_from_the_file(tmp_path):
    write_wfdb(tmp_path / "x", some_ecg())
    with open(tmp_path / "x.hea", "a") as header:
        header.write("#Age: 50\n#Sex: Female\n")
    write_wfdb(tmp_path / "y", some_ecg(seed=1))
    lines = ["record,patient,age,sex,device,site", "x,1,,,,", "y,2,61.0,M,CS-12,3"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    prepare("manifest", tmp_path / "out", root=tmp_path, csv=str(tmp_path / "t.csv"))
    rows = {row["record"]: row for split in load_prepared(tmp_path / "out").values() for row in split}
    facts = {name: [rows[name][fact] for fact in ("age", "sex", "device", "site")] for name in "xy"}
    assert facts == {"x": [50.0, "female", None, None], "y": [61.0, "male", "CS-12", "3"]}
    with pytest.raises(ValueError, match="age 'old' is no number of years"):
        planned(tmp_path, ["record,patient,age", "x,1,old"])


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_manifest_means_the_same_in_every_format(tmp_path, suffix):
    write_record(tmp_path / "raw/one", synthetic_ecg())
    write_record(tmp_path / "raw/two", synthetic_ecg())
    table = pd.DataFrame({"record": ["one", str(tmp_path / "raw/two.hea")], "patient": [1, 2], "labels": ["a; b", ""]})
    path = tmp_path / f"table.{suffix}"
    if suffix == "csv":
        table.to_csv(path, index=False)
    elif suffix == "parquet":
        table.to_parquet(path)
    else:
        table.to_json(path, orient="records", lines=suffix == "jsonl")
    rows = list(rows_of(prepare("manifest", tmp_path / "out", root=tmp_path / "raw", csv=str(path))).values())
    assert sorted(row["patient"] for row in rows) == ["1", "2"]
    assert {row["patient"]: row["labels"] for row in rows} == {"1": {"a", "b"}, "2": set()}


@pytest.mark.real_data
def test_other_databases_come_as_a_manifest(ecg_data, tmp_path):
    metadata = pd.read_csv(ecg_data / "brugada-huca/metadata.csv").astype({"patient_id": str})
    there = sorted(path.stem for path in (ecg_data / "brugada-huca/files").rglob("*.hea"))
    table = metadata[metadata["patient_id"].isin(there)]
    lines = [
        {"record": f"brugada-huca/files/{row.patient_id}/{row.patient_id}", "patient": row.patient_id,
         "labels_brugada": "brugada" if row.brugada else ""}
        for row in table.itertuples()
    ]  # fmt: skip
    lines.append({"record": "ptbdb/patient001/s0010_re", "patient": "patient001", "labels_brugada": None})
    pd.DataFrame(lines).to_json(tmp_path / "table.jsonl", orient="records", lines=True)
    rows = rows_of(prepare("manifest", tmp_path / "out", root=ecg_data, csv=str(tmp_path / "table.jsonl")))
    assert len(rows) == 13
    assert counts(rows.values(), "labels_brugada")["brugada"] == (table["brugada"] > 0).sum() > 0
    for record, row in rows.items():
        assert row["leads"] == list(LEADS)
        if record.startswith("brugada"):
            assert len(row["mv"]["I"]) == 6000 and row["labels_brugada"] is not None
    # Two signal files, 1000 Hz, 38.4 s, lower-case names, and three Frank leads that are left out.
    row = rows["ptbdb/patient001/s0010_re"]
    assert len(row["mv"]["I"]) == 19200 and row["labels_brugada"] is None
    original = wfdb.rdrecord(str(ecg_data / "ptbdb/patient001/s0010_re"), physical=True)
    samples = original.p_signal[:, original.sig_name.index("avf")]
    assert np.corrcoef(row["mv"]["aVF"][100:-100], samples[::2][100:-100])[0, 1] > 0.999


@pytest.mark.parametrize(
    ("cell", "classes"),
    [
        ("a;a; b", ["a", "b"]),
        ("nan", None),
        ("a;nan", ["a"]),
        ("", []),
        (float("nan"), None),
        (["a", float("nan"), None], ["a"]),
        ("nancy", ["nancy"]),
    ],
)
def test_a_missing_cell_is_no_class(tmp_path, cell, classes):
    import pandas as pd

    path = tmp_path / "t.parquet"
    cells = [cell, ["z"]] if isinstance(cell, list) else [cell, "z"]
    pd.DataFrame({"record": ["r", "s"], "patient": [1, 2], "labels": cells}).to_parquet(path)
    table = manifest.plan(str(tmp_path), csv=str(path))
    assert table["labels"].to_pylist()[0] == classes
    assert "nan" not in label_sets(table)["labels"]


def test_labels_without_any_class_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("record,patient,labels\na,1,\nb,2,\n")
    with pytest.raises(ValueError, match="t.csv: column 'labels' names no class at all"):
        manifest.plan(str(tmp_path), csv=str(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: rows[1].update(patient=""), "no patient"),
        (lambda rows: rows[1].update(record=rows[0]["record"]), "named twice"),
        (lambda rows: rows[1].update(split="dev"), "'dev'"),
        (lambda rows: rows[1].update(patient=rows[0]["patient"], split="test"), "patient 'p0' is in the splits"),
        (lambda rows: [row.pop("patient") for row in rows], "no column 'patient'"),
    ],
)
def test_a_contradictory_manifest_is_refused(tmp_path, change, message):
    rows = [{"record": f"r{i}", "patient": f"p{i}", "split": "train"} for i in range(3)]
    change(rows)
    write_manifest(tmp_path / "table.csv", rows)
    with pytest.raises(SystemExit, match=message):
        main(["manifest", "--csv", str(tmp_path / "table.csv"), "--root", ".", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
