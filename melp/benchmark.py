"""Measures speed: rates, achieved FLOP/s, their share of the device's measured matrix peak, and peak memory.

    python benchmark.py encode --batch-size 4 --dtype float32 bfloat16
    python benchmark.py train --batch-size 4 --dtype bfloat16
    python benchmark.py generate          greedy drafts of 32 tokens, with the cache
    python benchmark.py local-loss        the beat loss forward and backward, beside a loop over the reports
    python benchmark.py bootstrap         1,000 draws of patients at the size of the subclass test
    python benchmark.py data [--data DIR] records read (WFDB; a prepared folder at random, in order, as a stream),
                                          arrays processed, records simulated, MIMIC-IV-ECG prepared

At the paper's size. FLOPs are those the model needs (matrix products and convolutions, counted by torch); the peak is
that of a large square matrix product in the same run, so the share compares machines: quote it, not the rate. `data`
and `local-loss` compare ways to the same result in one run: quote their ratio. `data` counts the CPU time of one core.
"""

import argparse
import itertools
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits

from configuration_melp import MelpConfig
from losses_melp import beat_loss
from melp.training.cpu_kernels import use_cpu_kernels
from melp.training.device import (
    count_flops,
    device_name,
    matrix_peak,
    peak_memory,
    seconds_a_call,
)
from modeling_melp import MelpModel

ROOT = Path(__file__).resolve().parent.parent  # whose config.json has the paper's size
REPORT_TOKENS = (20, 41)  # reports of the usual length, about 30 tokens with [BOS] and [SEP]
SENTENCE_TOKENS = 8
DRAFT_TOKENS = 32
BEATS, SENTENCES, DIM = 13, 4, 256  # of the beat loss; the original's class has 13 beats
LARGE_BATCH = 1024  # at which the beat loss's memory is measured
RECORDS, CLASSES, PATIENTS, DRAWS = 2158, 23, 1900, 1000  # of `bootstrap`: PTB-XL's subclass test
CORPUS_RECORDS, WFDB_RECORDS = 500, 200  # that `data` makes
LISTED_RECORDS, MIMIC_RECORDS = 3000, 800_035  # of the MIMIC-IV-ECG that it makes up, and of the real one


def random_batch(config: MelpConfig, batch_size: int, device: torch.device) -> dict[str, torch.Tensor]:
    """ECGs and reports of `REPORT_TOKENS` tokens, padded to the longest."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(*REPORT_TOKENS, (batch_size,), generator=generator)
    width = int(lengths.max())
    position = torch.arange(width).expand(batch_size, -1)
    ids = torch.randint(5, config.text_config.vocab_size - 1, (batch_size, width), generator=generator)
    ids[:, 0] = config.bos_token_id
    mask = position < lengths[:, None]
    ids = ids.masked_fill(position == lengths[:, None] - 1, config.eos_token_id).masked_fill(
        ~mask, config.pad_token_id
    )
    words = (position > 0) & (position < lengths[:, None] - 1)
    batch = {
        "input_values": torch.rand(batch_size, config.ecg_config.num_leads, 5000, generator=generator),
        "input_ids": ids,
        "attention_mask": mask.long(),
        "sentence_ids": ((position - 1) // SENTENCE_TOKENS).masked_fill(~words, -1),
    }
    return {name: value.to(device) for name, value in batch.items()}


def encode_case(model: MelpModel, batch: dict, dtype: torch.dtype):
    """ECGs to embeddings, as `evaluate.py` and users do it: weights in `dtype`, no gradient."""
    model = model.eval().to(dtype)
    ecg = batch["input_values"].to(dtype)

    def call():
        with torch.no_grad():  # not inference_mode, which torch's FLOP counter cannot follow
            model.ecg_model(ecg)

    return call


def train_case(model: MelpModel, batch: dict, dtype: torch.dtype):
    """Forward, three losses and backward, as `train.py` does them: float32 weights, autocast below float32."""
    model.train()
    model.freeze_text_layers()
    device_type = batch["input_values"].device.type
    if device_type == "cpu":
        use_cpu_kernels(model)

    def call():
        with torch.autocast(device_type, dtype, enabled=dtype != torch.float32):
            loss = model(**batch).loss
        loss.backward()
        model.zero_grad(set_to_none=True)

    return call


def generate_case(model: MelpModel, batch: dict, dtype: torch.dtype):
    """Drafts of `DRAFT_TOKENS` tokens: greedy, with the cache."""
    model = model.eval().to(dtype)
    ecg = batch["input_values"].to(dtype)

    def call():
        model.generate(ecg, max_new_tokens=DRAFT_TOKENS, min_new_tokens=DRAFT_TOKENS, do_sample=False)

    return call


CASES = {"encode": encode_case, "train": train_case, "generate": generate_case}


def new_case(task: str, device: torch.device, dtype_name: str, batch_size: int, per_second: float, **others) -> dict:
    """A row; what has no meaning for its task is None."""
    case = {
        "task": task,
        "device": device_name(device),
        "dtype": dtype_name,
        "batch_size": batch_size,
        "per_second": per_second,
    }
    case |= dict.fromkeys(("tflops", "peak_tflops", "share_of_peak"))
    return case | {"peak_memory_gb": peak_memory(device)} | others


def measure_model(task: str, dtype_name: str, options) -> list[dict]:
    device = torch.device(options.device)
    dtype = getattr(torch, dtype_name)
    model = MelpModel(MelpConfig.from_pretrained(options.config)).to(device)
    batch = random_batch(model.config, options.batch_size, device)
    call = CASES[task](model, batch, dtype)
    # Of a draft, whose tokens come one by one, the FLOPs say nothing: it waits for memory.
    flops = None if task == "generate" else count_flops(model, call)
    if options.compile:
        model.ecg_model.compile()
    seconds = seconds_a_call(call, device, options.seconds)
    others = {"compiled": options.compile}
    if flops:
        peak = matrix_peak(device, dtype, options.seconds / 5)
        others |= {
            "tflops": flops / seconds / 1e12,
            "peak_tflops": peak / 1e12,
            "share_of_peak": flops / seconds / peak,
        }
    return [new_case(task, device, dtype_name, options.batch_size, options.batch_size / seconds, **others)]


# ---------------------------------------------------------------------------------------------------------- beat loss


def beat_loss_of_a_loop(beat_embeds: torch.Tensor, sentence_embeds: torch.Tensor, sentence_mask: torch.Tensor):
    """The beat loss one report after the other, as the original computes it."""
    columns = []
    for sentences, mask in zip(sentence_embeds, sentence_mask, strict=True):
        sentences = sentences[mask].expand(len(beat_embeds), -1, -1)  # (ecgs, sentences, dim)
        attention = (beat_embeds @ sentences.transpose(1, 2)).softmax(dim=-1)  # (ecgs, beats, sentences)
        context = (4.0 * attention).softmax(dim=1).transpose(1, 2) @ beat_embeds
        columns.append(10.0 * (5.0 * F.cosine_similarity(sentences, context, dim=-1)).logsumexp(dim=-1))
    logits = torch.stack(columns, dim=1)
    targets = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.t(), targets)) / 2


def measure_local_loss(way: str, batch_size: int, options) -> list[dict]:
    device = torch.device(options.device)
    beats = torch.randn(batch_size, BEATS, DIM, device=device, requires_grad=True)
    sentences = torch.randn(batch_size, SENTENCES, DIM, device=device, requires_grad=True)
    mask = torch.ones(batch_size, SENTENCES, dtype=torch.bool, device=device)
    loss = {"melp": beat_loss, "loop": beat_loss_of_a_loop}[way]
    before = peak_memory(device)
    seconds = seconds_a_call(lambda: loss(beats, sentences, mask).backward(), device, options.seconds)
    others = {"way": way, "milliseconds": 1e3 * seconds, "own_memory_gb": peak_memory(device) - before}
    return [new_case("local-loss", device, "float32", batch_size, batch_size / seconds, **others)]


# ---------------------------------------------------------------------------------------------------------- bootstrap


def measure_bootstrap(options) -> list[dict]:
    """The figures of a class and their intervals, as `evaluate.py` has them."""
    from melp.evaluation.metrics import ClassFigures

    generator = np.random.default_rng(0)
    targets = generator.random((RECORDS, CLASSES)) < 0.1
    scores = generator.random((RECORDS, CLASSES)) + 0.3 * targets
    patients = [*range(PATIENTS), *generator.integers(PATIENTS, size=RECORDS - PATIENTS)]
    names, thresholds = [str(number) for number in range(CLASSES)], np.full(CLASSES, 0.8)

    def call():
        return ClassFigures(targets, scores, names, patients, thresholds, samples=DRAWS).rows

    seconds = seconds_a_call(call, torch.device("cpu"), 0.0, repeats=1)
    return [new_case("bootstrap", torch.device("cpu"), "float64", RECORDS, DRAWS / seconds, whole_seconds=seconds)]


# --------------------------------------------------------------------------------------------------------------- data


def write_wfdb_files(rows, folder: str) -> list[str]:
    """Stored rows as format-16 records; their paths."""
    import wfdb

    for number, row in enumerate(rows):
        digital = np.frombuffer(row["signal"], dtype="<i2").reshape(len(row["leads"]), -1).T
        width, name = digital.shape[1], f"r{number:05d}"
        scale = {"adc_gain": row["gain"], "baseline": [int(value) for value in row["baseline"]]}
        units = {"fs": row["sampling_rate"], "units": ["mV"] * width, "sig_name": row["leads"], "fmt": ["16"] * width}
        wfdb.wrsamp(name, d_signal=np.ascontiguousarray(digital), write_dir=folder, **units, **scale)
    return sorted(str(path.with_suffix("")) for path in Path(folder).glob("*.hea"))


def wfdb_batch(paths: list[str]) -> torch.Tensor:
    """The original's way: a record at a time, in mV, its own minimum and maximum."""
    import wfdb

    records = []
    for path in paths:
        signal = wfdb.rdrecord(path).p_signal.T
        records.append(((signal - signal.min()) / (signal.max() - signal.min() + 1e-8)).astype(np.float32))
    return torch.from_numpy(np.stack(records))


def reading_ways(rows, folder, paths: list[str], batch_size: int) -> dict:
    """`{way: batches}`; every way ends at float32 tensors of scaled records, on the CPU."""
    from melp.data.batches import MelpCollator, prepare_inputs
    from melp.data.prepared import stream_prepared
    from processing_melp import MelpFeatureExtractor

    collate = MelpCollator(MelpFeatureExtractor(), text=False)

    def of_folder(order):
        for first in range(0, len(order) - batch_size + 1, batch_size):
            yield prepare_inputs(collate(rows.__getitems__(order[first : first + batch_size])), "cpu", "minmax")

    def of_stream():
        stream = stream_prepared(folder, "train", seed=0)
        for batch in torch.utils.data.DataLoader(stream, batch_size, collate_fn=collate, drop_last=True):
            yield prepare_inputs(batch, "cpu", "minmax")

    def of_wfdb():
        for first in range(0, len(paths) - batch_size + 1, batch_size):
            yield wfdb_batch(paths[first : first + batch_size])

    return {
        "wfdb": of_wfdb,
        "shards at random": lambda: of_folder(torch.randperm(len(rows)).tolist()),
        "shards in order": lambda: of_folder(list(range(len(rows)))),
        "stream": of_stream,
    }


def core_ways(rows, batch_size: int) -> dict:
    """`{way: batches}` of what one core does: the processor on arrays (batch, 12, samples) in mV, the simulator."""
    from melp.data.batches import MelpCollator
    from melp.synthetic import corpus as synthetic
    from processing_melp import MelpFeatureExtractor
    from signal_melp import LEADS, resample_ecg

    extractor, plan = MelpFeatureExtractor(), synthetic.plan(records=batch_size).to_pylist()
    signal = MelpCollator(extractor, text=False)(rows.__getitems__(range(batch_size)))["input_values"].numpy()
    slower = resample_ecg(signal, 500, 400)
    return {
        "processor, 500 Hz": lambda: [extractor(signal, sampling_rate=500, leads=LEADS)],
        "processor, from 400 Hz": lambda: [extractor(slower, sampling_rate=400, leads=LEADS)],
        "simulator": lambda: [[synthetic.read(item) for item in plan]],
    }


def rate_of_a_core(batches, batch_size: int, seconds: float) -> float:
    """Records a second of CPU time, of the fastest pass; the first, which also warms the cache, does not count."""
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
    """What MIMIC-IV-ECG has beside its files: a list of its records, and the carts' reports."""
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
    """CPU time, room and memory of `prepare.py mimic` on a made-up copy of that database's layout."""
    root, output = Path(folder) / "mimic", Path(folder) / "prepared"
    (root / "files").mkdir(parents=True)
    write_mimic_tables(rows, write_wfdb_files(rows, root / "files"), root, LISTED_RECORDS)
    command = [sys.executable, "-c", PREPARE, str(root), str(output)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    seconds, kilobytes = map(float, done.stdout.split())
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    others = {"kilobytes_a_record": size / LISTED_RECORDS / 1e3, "peak_memory_gb": kilobytes * 1024 / 1e9}
    return {"way": "prepare.py mimic", "per_second": LISTED_RECORDS / seconds, **others}


def measure_data(options) -> list[dict]:
    """All by the CPU time of one core: on a machine that others use, too, it is what an idle one would take."""
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
            rate = rate_of_a_core(batches, options.batch_size, options.seconds / len(ways))
            cases.append(new_case("data", device, "float32", options.batch_size, rate, way=way))
            if way in reading:
                cases[-1]["times_wfdb"] = rate / cases[0]["per_second"]
        cases.append(new_case("data", device, "float32", 1, **measure_prepare(few, folder)))
    return cases


# ------------------------------------------------------------------------------------------------------- command line


def measure(job: tuple, options) -> list[dict]:
    """Cases, in a process of their own, whose peak memory is then theirs."""
    function, *arguments = job
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if torch.device(options.device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return function(*arguments, options)


def jobs_of(options) -> list[tuple]:
    if options.task in ("data", "bootstrap"):
        return [({"data": measure_data, "bootstrap": measure_bootstrap}[options.task],)]
    if options.task == "local-loss":
        sizes = [("melp", options.batch_size), ("loop", options.batch_size), ("melp", LARGE_BATCH)]
        return [(measure_local_loss, way, size) for way, size in sizes]
    return [(measure_model, options.task, dtype_name) for dtype_name in options.dtype]


def as_row(case: dict) -> str:
    def number(name, form):
        return "" if case[name] is None else format(case[name], form)

    task = f"{case['task']}, {case['way']}" if "way" in case else case["task"]
    cells = [task, case["device"], case["dtype"], case["batch_size"], f"{case['per_second']:.2f}"]
    cells += [number("tflops", ".3f"), number("peak_tflops", ".3f"), number("share_of_peak", ".0%")]
    return "| " + " | ".join(map(str, [*cells, number("peak_memory_gb", ".1f")])) + " |"


def remark(case: dict) -> str | None:
    """What a ratio task is about, in words."""
    if "times_wfdb" in case and case["way"] != "wfdb":
        return f"{case['way']}: {case['times_wfdb']:.0f} times wfdb"
    if (size := case.get("kilobytes_a_record")) is not None:
        return (
            f"{case['way']}: {size:.0f} KB a record, {case['peak_memory_gb']:.2f} GB of memory a process; "
            f"{MIMIC_RECORDS:,} records: {MIMIC_RECORDS / case['per_second'] / 60:.0f} core-minutes, "
            f"{size * MIMIC_RECORDS / 1e6:.0f} GB"
        )
    if "whole_seconds" in case:
        return f"{DRAWS:,} draws of {RECORDS:,} recordings x {CLASSES} classes: {case['whole_seconds']:.1f} s"
    if "milliseconds" in case:
        return (
            f"{case['way']}, batch {case['batch_size']}: {case['milliseconds']:.1f} ms forward and backward, "
            f"{case['own_memory_gb']:.2f} GB"
        )
    return None


BATCH_SIZES = {"encode": 4, "train": 4, "generate": 4, "local-loss": 64, "data": 64, "bootstrap": 0}


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=BATCH_SIZES)
    parser.add_argument("--config", default=ROOT, help="folder or Hub id of the configuration (the paper's size)")
    parser.add_argument("--data", metavar="DIR", help="prepared folder that `data` reads (default: it makes one)")
    parser.add_argument("--json", metavar="FILE", help="write the cases as a JSON list")
    parser.add_argument(
        "--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16", "float16"]
    )
    parser.add_argument("--batch-size", type=int, help="default 4; 64 of local-loss and data")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--seconds", type=float, default=15.0, help="timed a case")
    parser.add_argument("--compile", action="store_true", help="torch.compile the ECG tower (needs a C++ compiler)")
    options = parser.parse_args(arguments)
    options.batch_size = options.batch_size or BATCH_SIZES[options.task]
    cases = []
    print("| task | device | dtype | batch | a second | TFLOP/s | peak | share | memory GB |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|")
    for job in jobs_of(options):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            measured = pool.submit(measure, job, options).result()
        cases += measured
        print("\n".join(map(as_row, measured)), flush=True)
    if remarks := list(filter(None, map(remark, cases))):
        print("\n" + "\n".join(remarks))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(cases, file, indent=2)
        print(f"\nWritten to {options.json}.")


if __name__ == "__main__":
    main()
