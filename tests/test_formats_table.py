"""CSV, TSV, Parquet, NumPy and HDF5: layouts, stacks, what has to be said, and every refusal."""

import io
import tracemalloc
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ecg_files import STEP, USUAL_ORDER, counts

from formats_melp import list_records, read_ecg, reads_parts

DATA = counts()
MV = (DATA * STEP).astype(np.float32)
SAID = {"sampling_rate": 500, "unit": "mV"}
LEADS = {"leads": USUAL_ORDER}


def check(source, expected=MV, atol=1e-6, **said):
    block = read_ecg(source, **said)
    rows = [USUAL_ORDER.index(lead) for lead in block.leads]
    np.testing.assert_allclose(block.signal[0], expected[rows], atol=atol)
    return block


def refused(source, message, **said):
    with pytest.raises(ValueError, match=message):
        read_ecg(source, **said)


# CSV


HEAD = ",".join(USUAL_ORDER)


def table(rows=MV.T, head=HEAD, delimiter=",", decimal=".", index=False, end="\n") -> bytes:
    lines = [] if head is None else [head]
    for number, row in enumerate(rows.tolist()):
        cells = [f"{value:.4f}".replace(".", decimal) for value in row]
        lines.append(delimiter.join([str(number), *cells] if index else cells))
    return (end.join(lines) + end).encode()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, {}),
        ({"end": "\r\n"}, {}),
        ({"delimiter": "\t", "head": "\t".join(USUAL_ORDER)}, {}),
        ({"delimiter": ";", "head": ";".join(USUAL_ORDER), "decimal": ","}, {}),
        ({"delimiter": " ", "head": " ".join(USUAL_ORDER)}, {}),
        ({"head": None}, LEADS),
        ({"index": True, "head": "sample," + ",".join(USUAL_ORDER)}, {}),
        ({"index": True, "head": "," + ",".join(USUAL_ORDER)}, {}),
        ({"index": True, "head": "time (s)," + ",".join(USUAL_ORDER)}, {}),
        ({"head": "# a comment\n" + ",".join(USUAL_ORDER)}, {}),
        ({"head": ",".join(f"Lead {lead}" for lead in USUAL_ORDER)}, {}),
        ({"head": ",".join(f'"{lead}"' for lead in USUAL_ORDER)}, {}),
        ({"head": ",".join(USUAL_ORDER) + "\n" + ",".join(["mV"] * 12)}, {"unit": None}),
        ({"head": ",".join(f"{lead} (mV)" for lead in USUAL_ORDER)}, {"unit": None}),
        ({"head": ",".join(f"{lead} [mV]" for lead in USUAL_ORDER)}, {"unit": None}),
    ],
)
def test_layouts_of_a_table(changes, said):
    data = table(**changes)
    said = SAID | said
    check(data, **said, atol=6e-5)
    check(data, MV[:, 500:1000], **said, atol=6e-5, start=1, seconds=1)
    check(data.decode().encode("utf-16"), **said, atol=6e-5)
    check(b"\xef\xbb\xbf" + data, **said, atol=6e-5)


def test_a_table_in_microvolts_with_a_micro_sign():
    for encoding in ("utf-8", "latin-1"):
        head = ",".join(f"{lead} (\u00b5V)" for lead in USUAL_ORDER)
        data = (head + "\n" + table(MV.T * 1000, head=None).decode()).encode(encoding)
        check(data, sampling_rate=500, atol=6e-5)


def test_empty_cells_are_missing():
    text = table().decode().split("\n")
    cells = text[8].split(",")
    cells[3], cells[5] = "", "NaN"
    text[8] = ",".join(cells)
    signal = read_ecg("\n".join(text).encode(), **SAID).signal[0]
    assert np.isnan(signal[3, 7]) and np.isnan(signal[5, 7]) and np.isnan(signal).sum() == 2


@pytest.mark.parametrize(
    ("data", "said", "message"),
    [
        (table(), {"unit": "mV"}, "not stated: its sampling rate; pass sampling_rate="),
        (table(), {"sampling_rate": 500}, "not stated: the unit of lead I; pass unit="),
        (table(head=None), SAID, "not stated: the name of channel 1 of 12"),
        (table(head=None), SAID | {"leads": USUAL_ORDER[:11]}, "11 leads named for 12 channels"),
        (table(head=",".join(USUAL_ORDER[:11])), SAID, "wrong header: 11 names for 12 columns"),
        (table()[:-30], SAID, r"row 2500 of its samples has \d+ of 12 cells; repair the table"),
        (table() + b"1,2,3\n", SAID, "row 2501 of its samples has 3 of 12 cells"),
        (table() + b"1," * 11 + b"many\n", SAID, "row 2501 of its samples holds 'many'"),
        (table(), SAID | {"start": 99}, "start= is past its end"),
        (table(), {"unit": "mV", "start": 1}, "not stated: its sampling rate"),
        (table(head=",".join([*USUAL_ORDER[:11], ""])), SAID, "the name of channel 12 of 12"),
        (b"I,II\n", SAID, "unknown format"),
        (b'{"I": [1, 2, 3]}', SAID, "unknown format"),
        (b"hello, world\nhow are you\n", SAID, "unknown format"),
    ],
)
def test_tables_that_are_refused(data, said, message):
    refused(data, message, **said)


def test_a_line_without_end_is_refused():
    refused(table() + b"1" * 200_000, "a line without end|of 12 cells", **SAID)


# NumPy


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npz(compress=False, **arrays) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2"])
def test_npy_in_every_layout(order, transposed, dtype):
    array = DATA if dtype == "<i2" else MV
    said = SAID | LEADS | ({"unit": "2.5 uV"} if dtype == "<i2" else {})
    array = np.asarray(array.T if transposed else array, dtype=dtype, order=order)
    check(npy(array), **said)
    check(npy(array), MV[:, 500:1000], **said, start=1, seconds=1)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_stack_of_arrays(tmp_path, order):
    stack = np.asfortranarray(np.stack([MV, 2 * MV])) if order == "F" else np.stack([MV, 2 * MV])
    (tmp_path / "stack.npy").write_bytes(npy(stack))
    names = list_records(tmp_path / "stack.npy")
    assert [name[-2:] for name in names] == ["#0", "#1"]
    check(names[1], 2 * MV, **SAID, **LEADS)
    check(names[1], 2 * MV[:, 500:1000], **SAID, **LEADS, start=1, seconds=1)
    refused(tmp_path / "stack.npy", "unknown record: it holds 2; name one, as in FILE#0", **SAID, **LEADS)
    refused(f"{tmp_path}/stack.npy#2", "unknown record: '2'; they are numbered 0 to 1", **SAID, **LEADS)
    assert list_records(tmp_path / "nowhere") == [str(tmp_path / "nowhere")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.array([{"a": 1}], dtype=object)), "a pickled array, which is never loaded"),
        (npy(MV.astype(complex)), "unsupported: an array of complex128"),
        (npy(MV.astype(str)), "unsupported: an array of <U"),
        (npy(MV[0]), "no ECG in it: an array of shape"),
        (npy(np.zeros((12, 12))), "exactly one axis must be as long"),
        (npy(np.zeros((0, 12))), "no ECG in it|exactly one axis"),
        (npy(MV)[:-1], "empty or cut off: 120000 bytes of samples stated, 119999 are there"),
        (npy(MV) + b"x", "empty or cut off"),
        (npy(MV).replace(b"(12, 2500)", b"(12, 9999)"), "empty or cut off"),
        (npy(MV).replace(b"(12, 2500)", b"(-12, 250"), "damaged|empty or cut off"),
        (npy(MV).replace(b"'descr'", b"'descx'"), "its .npy header cannot be read"),
        (b"\x93NUMPY\x09\x00" + npy(MV)[8:], "its .npy header cannot be read"),
        (npy(np.zeros(5, dtype=[("a", "f4")])), "unsupported: an array of"),
    ],
)
def test_npy_that_is_refused(data, message):
    refused(data, message, **SAID, **LEADS)


@pytest.mark.parametrize("compress", [False, True])
def test_npz_says_what_it_holds(compress):
    said = {"fs": np.array(500), "leads": np.array(USUAL_ORDER), "unit": np.array("mV")}
    check(npz(compress, ecg=MV, **said))
    check(npz(compress, ecg=MV, **said), MV[:, 500:1000], start=1, seconds=1)
    check(npz(compress, x=MV.T, fs=np.array([500])), unit="mV", **LEADS)
    refused(npz(ecg=MV, **said), "contradiction: sampling_rate=250", sampling_rate=250)
    refused(npz(ecg=MV, **(said | {"fs": np.array(np.nan)})), "its rate is")
    refused(npz(first=MV, second=MV), "unclear signal: one of 'first', 'second'")
    check(npz(ecg=MV, mask=MV, **said))
    refused(npz(ecg=np.array([None])), "a pickled array")
    refused(npz(text=np.array("x")), "unclear signal|no ECG")


@pytest.mark.parametrize("compress", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_part_of_an_npz_is_read_without_the_rest(tmp_path, compress):
    generator = np.random.default_rng(0)
    for signal in (generator.integers(-2000, 2000, (12, 300_000), np.int16), None):
        signal = generator.integers(-2000, 2000, (300_000, 12), np.int16) if signal is None else signal
        file = tmp_path / "long.npz"
        file.write_bytes(npz(compress, ecg=signal, fs=500, leads=np.array(LEADS["leads"]), time=np.arange(3e5)))
        said = {"unit": "uV", "start": 590, "seconds": 10}
        read_ecg(file, **said)
        tracemalloc.start()
        try:
            block = read_ecg(file, **said)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        expected = signal[:, -5000:] if signal.shape[0] == 12 else signal[-5000:].T
        np.testing.assert_allclose(block.signal[0], expected / 1000, atol=1e-6)
        assert peak < 3e6 < signal.nbytes, "7.2 MB of samples"


def test_a_table_longer_than_asked_for_is_counted_and_not_kept(tmp_path):
    rows = [",".join(LEADS["leads"]), *(",".join(f"{value:.3f}" for value in row) for row in MV.T)]
    file = tmp_path / "day.csv"
    file.write_text("\n".join([rows[0], *rows[1:] * 4]))
    with pytest.raises(ValueError, match="it lasts") as caught:
        read_ecg(file, unit="mV", sampling_rate=500, longest=15)
    assert caught.value.__cause__.seconds == pytest.approx(4 * MV.shape[1] / 500)
    part = read_ecg(file, unit="mV", sampling_rate=500, start=5, seconds=5, longest=15)
    np.testing.assert_allclose(part.signal[0], MV, atol=1e-3)
    assert reads_parts(file)


@pytest.mark.parametrize(("name", "step"), [("time (s)", 0.002), ("Time_ms", 2.0), ("seconds", 0.002)])
def test_a_column_of_time_that_contradicts_the_rate_is_refused(name, step):
    rows = [",".join([name, *USUAL_ORDER])]
    rows += [",".join(f"{value:.3f}" for value in (number * step, *row)) for number, row in enumerate(MV.T[:1000])]
    table = "\n".join(rows).encode()
    check(table, MV[:, :1000], atol=1e-3, **SAID)
    refused(
        table, "contradiction: sampling_rate=250, but its column of time says 500 Hz", **SAID | {"sampling_rate": 250}
    )
    check(table.replace(name.encode(), b"sample"), MV[:, :1000], atol=1e-3, **SAID | {"sampling_rate": 250})


def test_text_that_is_no_ecg_is_not_quoted():
    with pytest.raises(ValueError, match="unknown format: it begins with text") as caught:
        read_ecg(b"Erika Mustermann, born 1964\n")
    assert "Erik" not in str(caught.value)
    refused(b"\x7fELF\x02\x01", "it begins with 7f 45 4c 46 02 01")


def test_npz_that_is_damaged_or_hostile(tmp_path):
    data = npz(True, ecg=MV)
    for damaged in (data[:-30], data[: len(data) // 2], data[:200] + b"xxxx" + data[204:]):
        refused(damaged, "damaged|empty or cut off", **SAID, **LEADS)
    buffer = io.BytesIO()
    archive = zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open("ecg.npy", "w", force_zip64=True) as file:
        for _ in range(90):
            file.write(bytes(2**20))
    refused(buffer.getvalue(), "too large: it would unpack", **SAID, **LEADS)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(buffer.getvalue(), "a .zip file without .npy arrays")


# HDF5


@pytest.fixture
def write(tmp_path):
    h5py = pytest.importorskip("h5py")

    def write(attributes=(), **datasets):
        path = tmp_path / "file.h5"
        with h5py.File(path, "w") as file:
            for name, value in datasets.items():
                file[name.replace("__", "/")] = value
            file.attrs.update(dict(attributes))
        return path

    return write


def test_hdf5_layouts(write):
    said = {"fs": 500, "unit": "mV", "leads": list(USUAL_ORDER)}
    path = write(said, signals=MV)
    check(path)
    check(path, MV[:, 500:1000], start=1, seconds=1)
    check(path.read_bytes())
    check(write(said, tracings=MV.T[None], other=MV.T[None]))
    check(write(ecg=MV, fs=500, units="mV"), **LEADS)
    check(write(said, folder__ecg=MV))
    check(write(leads=[lead.encode() for lead in USUAL_ORDER], ecg=MV, fs=500.0), unit="mV")


def test_stacks_and_datasets_of_records(write):
    path = write({"fs": 500, "unit": "mV"}, tracings=np.stack([MV, 2 * MV]).swapaxes(1, 2), exam_id=[71, 72])
    assert [name.rpartition("#")[2] for name in list_records(path)] == ["71", "72"]
    check(f"{path}#72", 2 * MV, **LEADS)
    check(f"{path}#72", 2 * MV[:, 500:1000], **LEADS, start=1, seconds=1)
    refused(path, "it holds 2; name one, as in FILE#71", **LEADS)
    refused(f"{path}#73", "0 are called '73'", **LEADS)
    path = write({"fs": 500, "unit": "mV"}, a__one=MV, a__two=2 * MV)
    assert [name.rpartition("#")[2] for name in list_records(path)] == ["a/one", "a/two"]
    check(f"{path}#a/two", 2 * MV, **LEADS)
    refused(path, "name one, as in FILE#a/one", **LEADS)


def test_hdf5_that_is_refused(write, tmp_path):
    h5py = pytest.importorskip("h5py")
    refused(write(text="hello"), "no dataset of samples")
    refused(write(one=MV[None], two=MV[None]), "unclear signal: one of 'one', 'two'")
    refused(write(ecg=MV), "not stated: the name of channel 1", **SAID)
    refused(write(ecg=MV[:, :5]), "not stated", **SAID)
    path = write(ecg=MV)
    data = path.read_bytes()
    for cut in (data[:-1], data[: len(data) // 2], data[:600]):
        refused(cut, "no valid HDF5", **SAID, **LEADS)
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("ecg", (12, 100_000_000), "f4", chunks=(12, 100_000), compression="gzip")
    refused(tmp_path / "bomb.h5", "too large: it would unpack to 4800000000 bytes", **SAID, **LEADS)
    with h5py.File(tmp_path / "chunk.h5", "w") as file:
        file.create_dataset("ecg", (12, 20_000_000), "f4", chunks=(12, 20_000_000), compression="gzip")
    refused(tmp_path / "chunk.h5", "too large", **SAID, **LEADS, seconds=10)
    (tmp_path / "secret.bin").write_bytes(MV.tobytes())
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("ecg", (12, 2500), "f4", external=[(str(tmp_path / "secret.bin"), 0, MV.nbytes)])
        file["link"] = h5py.ExternalLink("file.h5", "ecg")
    refused(tmp_path / "external.h5", "no dataset of samples", **SAID, **LEADS)


def test_a_matlab_file_of_version_7_3_is_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "new.mat", "w", userblock_size=512) as file:
        file["val"] = MV.T
    with open(tmp_path / "new.mat", "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(512))
    check(tmp_path / "new.mat", **SAID, **LEADS)


# Parquet


def parquet(columns, metadata=None, **options) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), buffer, **options)
    return buffer.getvalue()


WIDE = dict(zip(USUAL_ORDER, MV, strict=True))
LISTS = {lead: pa.array([row, 2 * row]) for lead, row in WIDE.items()}


@pytest.mark.parametrize("options", [{}, {"row_group_size": 700}, {"compression": "zstd"}])
def test_parquet_with_a_row_per_sample(options):
    check(parquet(WIDE, **options), **SAID)
    check(parquet(WIDE, {"fs": "500", "unit": "mV"}, **options))
    check(parquet(WIDE, {"fs": "500", "unit": "mV"}, **options), MV[:, 500:1500], start=1, seconds=2)
    check(parquet({"sample": np.arange(2500), **WIDE}, **options), **SAID)
    check(parquet({lead: row.astype(np.float64) for lead, row in WIDE.items()}, **options), **SAID)
    check(parquet(dict(zip(USUAL_ORDER, DATA, strict=True)), **options), sampling_rate=500, unit="2.5 uV")


@pytest.mark.parametrize("options", [{}, {"row_group_size": 1}])
def test_parquet_with_a_row_per_record(tmp_path, options):
    (tmp_path / "lists.parquet").write_bytes(parquet({"record": ["a", "b"], **LISTS}, {"unit": "mV"}, **options))
    names = list_records(tmp_path / "lists.parquet")
    assert [name.rpartition("#")[2] for name in names] == ["a", "b"]
    check(names[1], 2 * MV, sampling_rate=500)
    check(names[1], 2 * MV[:, 500:1500], sampling_rate=500, start=1, seconds=2)
    refused(tmp_path / "lists.parquet", "it holds 2; name one, as in FILE#a", sampling_rate=500)
    nested = pa.array([MV.tolist(), (2 * MV).tolist()])
    (tmp_path / "nested.parquet").write_bytes(parquet({"ecg": nested, "fs": [500, 250]}, {"unit": "mV"}, **options))
    assert check(f"{tmp_path}/nested.parquet#0", **LEADS).sampling_rate == 500
    assert check(f"{tmp_path}/nested.parquet#1", 2 * MV, **LEADS).sampling_rate == 250


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (parquet(WIDE)[:-1], "no valid Parquet, or cut off"),
        (parquet(WIDE)[:1000], "no valid Parquet, or cut off"),
        (parquet({"text": ["a"]}), "no column of numbers"),
        (parquet({"record": ["a"] * 2500, **WIDE}), "unsupported: records one below the other"),
        (parquet({"I": pa.array([[1.0, 2.0]]), "II": pa.array([[1.0]])}), "its leads differ in length"),
        (parquet({"I": pa.array([["a"]])}), "does not hold lists of numbers"),
        (parquet({**WIDE, "banana": MV[0]}), "unknown lead: 'banana'"),
    ],
)
def test_parquet_that_is_refused(data, message):
    refused(data, message, **SAID)


@pytest.mark.slow
def test_parquet_that_would_unpack_to_too_much_is_refused():
    refused(parquet({"I": np.zeros(300_000_000, dtype=np.int8)}), "too large: it would unpack", **SAID)


# Records of a file


def test_a_hash_in_a_files_name_is_just_that(tmp_path):
    (tmp_path / "a#1.npy").write_bytes(npy(MV))
    check(tmp_path / "a#1.npy", **SAID, **LEADS)
    assert list_records(tmp_path / "a#1.npy") == [str(tmp_path / "a#1.npy")]
    (tmp_path / "plain.csv").write_bytes(table())
    refused(f"{tmp_path}/plain.csv#3", "unknown record: it holds one, none called '3'", **SAID)
