"""How much memory reading takes, as a multiple of the file: whole, and ten seconds of it.

tracemalloc sees what Python and NumPy take, not Arrow's and HDF5's buffers: a row group, a chunk.

    python -m pytest tests/test_formats_memory.py -s

prints the table of docs/formats.md.
"""

import gzip
import tracemalloc

import ecg_files
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ecg_files import STEP, USUAL_ORDER, counts
from test_formats_wfdb import pack

from formats_melp import read_ecg

# Those that Python reads number by number; 2 minutes of XML, 20 of the others
MINUTES = {"SCP-ECG": 0.5, "CSV": 0.5, "HL7 aECG": 4}
XML = ("HL7 aECG", "GE MUSE", "Philips", "Mortara", "CardioSoft", "Schiller")
COUNTS = {"unit": "2.5 uV", "leads": USUAL_ORDER, "sampling_rate": 500}

# Format -> at most so many times the file's size for all of it, and whether a part takes only its part.
LIMITS = {
    "WFDB 16": (3.5, True),
    "WFDB 212": (5, True),
    "EDF": (3.5, True),
    "BDF": (3.5, True),
    "ISHNE": (3.5, True),
    "MFER": (3.5, True),
    "DICOM": (3.5, True),
    "SCP-ECG": (12, False),
    **dict.fromkeys(XML, (5, False)),
    "HL7 aECG": (2.5, True),
    "CSV": (2, True),
    "Parquet": (2.5, True),
    ".npy": (3.5, True),
    ".npz": (3.5, True),
    "HDF5": (3.5, True),
    "EDF.gz": (12, False),  # of the compressed file; all of it is decompressed
}


def write(name, data, folder):
    """A file, what has to be said of it, and its size."""
    said = {}
    path = folder / "file"
    if name.startswith("WFDB"):
        sample_format = name.split()[1]
        path = ecg_files.wfdb(folder, data, format=sample_format)
        path.with_suffix(".dat").write_bytes(pack(data, sample_format))
        return path, said, path.with_suffix(".dat").stat().st_size
    binary = {"EDF": ecg_files.edf, "ISHNE": ecg_files.ishne, "MFER": ecg_files.mfer, "DICOM": ecg_files.dicom}
    binary |= dict(zip(XML, (ecg_files.aecg, ecg_files.muse, ecg_files.philips), strict=False)) | {
        "SCP-ECG": ecg_files.scp,
        "Mortara": ecg_files.mortara,
        "CardioSoft": ecg_files.cardiosoft,
        "Schiller": ecg_files.schiller,
        "BDF": lambda data: ecg_files.edf(data, bdf=True),
        "EDF.gz": lambda data: gzip.compress(ecg_files.edf(data), 1),
    }
    if name in binary:
        path.write_bytes(binary[name](data))
    elif name == "CSV":
        rows = [",".join(USUAL_ORDER), *(",".join(f"{value:.4f}" for value in row) for row in (data * STEP).T)]
        path.write_text("\n".join(rows))
        said = {"unit": "mV", "sampling_rate": 500}
    elif name == "Parquet":
        table = pa.table(dict(zip(USUAL_ORDER, (data * STEP).astype(np.float32), strict=True)))
        pq.write_table(table, path, compression="none", use_dictionary=False)
        said = {"unit": "mV", "sampling_rate": 500}
    elif name == "HDF5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file["tracings"] = data.T[None]
        said = COUNTS
    else:
        with open(path, "wb") as file:
            np.save(file, data) if name == ".npy" else np.savez(file, ecg=data)
        said = COUNTS
    return path, said, path.stat().st_size


def peak_of(path, **said):
    tracemalloc.start()
    try:
        block = read_ecg(path, **said)
        return tracemalloc.get_traced_memory()[1], block
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("name", LIMITS)
def test_memory_is_a_stated_multiple_of_the_file(tmp_path, name, capsys):
    if name == "DICOM":
        pytest.importorskip("pydicom")
    minutes = MINUTES.get(name, 2 if name in XML else 20)
    data = np.tile(counts(3000), (1, round(minutes * 10)))
    path, said, size = write(name, data, tmp_path)
    read_ecg(path, seconds=1, **said)  # what is imported once is not the file's
    limit, is_partial = LIMITS[name]
    whole, block = peak_of(path, **said)
    assert block.signal.shape[2] == data.shape[1]
    part, block = peak_of(path, start=15, seconds=10, **said)
    assert block.signal.shape[2] == 5000
    with capsys.disabled():
        print(f"\n{name:12} {size / 1e6:6.1f} MB: whole {whole / size:5.2f} times, ten seconds {part / size:5.2f}")
    assert whole < limit * size
    assert part < (2e6 + 0.05 * size if is_partial else limit * size)
