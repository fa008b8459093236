"""Rates of one core: recordings read, processed, simulated and prepared, and the bootstrap of an evaluation."""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

import melp
from melp.benchmark.case import new_case
from melp.training.device import seconds_per_call

RECORDS, CLASSES, PATIENTS, DRAWS = 2158, 23, 1900, 1000  # of `bootstrap`: PTB-XL's subclass test
CORPUS_RECORDS, WFDB_RECORDS = 500, 200  # that `data` makes
LISTED_RECORDS = 3000  # of the MIMIC-IV-ECG that it makes up


def write_wfdb_files(rows, folder: str) -> list[str]:
    """Writes stored rows as format-16 records; returns their paths."""
    import wfdb

    for number, row in enumerate(rows):
        digital = np.frombuffer(row["signal"], dtype="<i2").reshape(len(row["leads"]), -1).T
        width, name = digital.shape[1], f"r{number:05d}"
        scale = {"adc_gain": row["gain"], "baseline": [int(value) for value in row["baseline"]]}
        units = {"fs": row["sampling_rate"], "units": ["mV"] * width, "sig_name": row["leads"], "fmt": ["16"] * width}
        wfdb.wrsamp(name, d_signal=np.ascontiguousarray(digital), write_dir=folder, **units, **scale)
    return sorted(str(path.with_suffix("")) for path in Path(folder).glob("*.hea"))


def wfdb_batch(paths: list[str]) -> torch.Tensor:
    """Reads records as the original does: one at a time, in mV, scaled by its own minimum and maximum."""
    import wfdb

    records = []
    for path in paths:
        signal = wfdb.rdrecord(path).p_signal.T
        records.append(((signal - signal.min()) / (signal.max() - signal.min() + 1e-8)).astype(np.float32))
    return torch.from_numpy(np.stack(records))


def reading_ways(rows, folder, paths: list[str], batch_size: int) -> dict:
    """Returns `{way: batches}`; every way ends at float32 tensors of scaled records, on the CPU."""
    from melp.data.batches import MelpCollator, prepare_inputs
    from melp.data.prepared import stream_prepared
    from processing_melp import MelpFeatureExtractor

    collate = MelpCollator(MelpFeatureExtractor(), text=False)

    def folder_batches(order):
        for first in range(0, len(order) - batch_size + 1, batch_size):
            yield prepare_inputs(collate(rows.__getitems__(order[first : first + batch_size])), "cpu", "minmax")

    def stream_batches():
        stream = stream_prepared(folder, "train", seed=0)
        for batch in torch.utils.data.DataLoader(stream, batch_size, collate_fn=collate, drop_last=True):
            yield prepare_inputs(batch, "cpu", "minmax")

    def wfdb_batches():
        for first in range(0, len(paths) - batch_size + 1, batch_size):
            yield wfdb_batch(paths[first : first + batch_size])

    return {
        "wfdb": wfdb_batches,
        "shards at random": lambda: folder_batches(torch.randperm(len(rows)).tolist()),
        "shards in order": lambda: folder_batches(list(range(len(rows)))),
        "stream": stream_batches,
    }


def core_ways(rows, batch_size: int) -> dict:
    """Returns `{way: batches}` of what a core does: processing arrays (batch, 12, samples) in mV, simulating."""
    from melp.data.batches import MelpCollator
    from melp.synthetic import corpus as synthetic
    from processing_melp import MelpFeatureExtractor
    from signal_melp import LEADS, resample_ecg

    extractor, plan = MelpFeatureExtractor(), synthetic.plan(records=batch_size, variety="full").to_pylist()
    signal = MelpCollator(extractor, text=False)(rows.__getitems__(range(batch_size)))["input_values"].numpy()
    slower = resample_ecg(signal, 500, 400)
    return {
        "processor, 500 Hz": lambda: [extractor(signal, sampling_rate=500, leads=LEADS)],
        "processor, from 400 Hz": lambda: [extractor(slower, sampling_rate=400, leads=LEADS)],
        "simulator": lambda: [[synthetic.read(item) for item in plan]],
    }


def core_rate(batches, batch_size: int, seconds: float) -> float:
    """Returns records per second of CPU time, of the fastest pass; the first one warms the cache."""
    sum(1 for _ in batches())
    rates, until = [], time.perf_counter() + seconds
    while not rates or time.perf_counter() < until:
        started = time.process_time()
        count = sum(batch_size for _ in batches())
        rates.append(count / (time.process_time() - started))
    return max(rates)


def make_corpus(folder) -> Path:
    from melp.prepare.folder import prepare

    return prepare("synthetic", Path(folder) / "corpus", records=CORPUS_RECORDS)


def write_mimic_tables(rows, paths: list[str], root: Path, records: int):
    """Writes what MIMIC-IV-ECG has besides its files: a list of its records, and the carts' reports."""
    with open(root / "record_list.csv", "w") as listed, open(root / "machine_measurements.csv", "w") as measured:
        listed.write("subject_id,study_id,path\n")
        measured.write("study_id,report_0\n")
        for study, (path, report) in zip(range(records), itertools.cycle(zip(paths, rows["report"], strict=True))):
            listed.write(f"{study // 5},{study},{Path(path).relative_to(root)}\n")
            measured.write(f'{study},"{report}"\n')


# In a process of its own, as users run it: without torch. The first run imports what the second is measured with.
PREPARE = """
import re, sys, time
from melp.prepare.folder import prepare
prepare("mimic", sys.argv[2] + "-first", root=sys.argv[1], limit=10)
started = time.process_time()
prepare("mimic", sys.argv[2], root=sys.argv[1])
print(time.process_time() - started)
# Of its own: what the system calls a child's peak is no less than its parent's.
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1] if sys.platform == "linux" else "nan")
"""


def measure_prepare(rows, folder: str) -> dict:
    """Measures CPU time, room and memory of `melp.prepare mimic` on a made-up copy of that database's layout."""
    root, output = Path(folder) / "mimic", Path(folder) / "prepared"
    (root / "files").mkdir(parents=True)
    write_mimic_tables(rows, write_wfdb_files(rows, root / "files"), root, LISTED_RECORDS)
    command = [sys.executable, "-c", PREPARE, str(root), str(output)]
    path = os.pathsep.join([str(Path(melp.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    done = subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": path}, **options)
    seconds, kilobytes = map(float, done.stdout.split())
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    others = {"kilobytes_per_record": size / LISTED_RECORDS / 1e3, "peak_memory_gb": kilobytes * 1024 / 1e9}
    return {"way": "melp.prepare mimic", "per_second": LISTED_RECORDS / seconds, **others}


def measure_data(options) -> list[dict]:
    """Measures all by the CPU time of one core: on a shared machine it is what an idle one takes."""
    from melp.data.prepared import get_split, load_prepared

    cases, device = [], torch.device("cpu")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        data = options.data or make_corpus(folder)
        rows = get_split(load_prepared(data), "train", data)
        few = rows.select(range(min(len(rows), WFDB_RECORDS)))
        reading = reading_ways(rows, data, write_wfdb_files(few, folder), options.batch_size)
        ways = reading | core_ways(rows, options.batch_size)
        for way, batches in ways.items():
            rate = core_rate(batches, options.batch_size, options.seconds / len(ways))
            cases.append(new_case("data", device, "float32", options.batch_size, rate, way=way))
            if way in reading:
                cases[-1]["times_wfdb"] = rate / cases[0]["per_second"]
        cases.append(new_case("data", device, "float32", 1, **measure_prepare(few, folder)))
    return cases


def measure_bootstrap(options) -> list[dict]:
    """Measures the figures of a class and their intervals, as `evaluate.py` has them."""
    from melp.evaluation.metrics import ClassFigures

    generator = np.random.default_rng(0)
    targets = generator.random((RECORDS, CLASSES)) < 0.1
    scores = generator.random((RECORDS, CLASSES)) + 0.3 * targets
    patients = [*range(PATIENTS), *generator.integers(PATIENTS, size=RECORDS - PATIENTS)]
    names, thresholds = [str(number) for number in range(CLASSES)], np.full(CLASSES, 0.8)

    def call():
        return ClassFigures(targets, scores, names, patients, thresholds, samples=DRAWS).rows

    seconds = seconds_per_call(call, torch.device("cpu"), 0.0, repeats=1)
    what = f"{RECORDS:,} recordings x {CLASSES} classes"
    others = {"whole_seconds": seconds, "draws": DRAWS, "what": what}
    return [new_case("bootstrap", torch.device("cpu"), "float64", RECORDS, DRAWS / seconds, **others)]
