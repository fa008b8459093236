"""Turns a database's raw files into one format: a folder for `datasets.load_from_disk` and `load_dataset`.

    python prepare.py synthetic --output DIR --records 4000
    python prepare.py ptbxl --root RAW --output DIR --workers 8
    python prepare.py manifest --csv FILE --root RAW --output DIR

A recording becomes one row: int16 samples of its leads at 500 Hz with their gain, the report, the labels, patient,
split and a quality report. One that cannot be used costs a line in `rejected.csv`, never the run. Interrupted or
killed, the same command goes on where it stopped: finished shards of 1,000 recordings are kept, begun ones redone.
"""

import argparse
import csv
import errno
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

# datasets and torch stay out of this level: every worker process imports what stands here.
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from melp import markdown
from melp.databases import DATABASES, SPLITS, EcgRecord
from melp.databases.wfdb_record import MISSING, quantise
from signal_melp import LEADS, canonical_leads, check_sampling_rate, ecg_quality, interpolate_gaps, resample_ecg

STORED_RATE = 500  # Hz of every recording in a prepared folder
MIN_DURATION = 2.0  # s
SHARD_RECORDS = 1000
BATCH_RECORDS = 100  # rows of an Arrow record batch: 12 MB at 10 s
PLAN_BATCH = 10_000

# Column -> type and meaning, as the card has them; label sets and the database's own columns follow these.
COLUMNS = {
    "record": ("string", "name of the recording in its database"),
    "patient": ("string", "identifier of the patient, who is in one split only"),
    "report": ("string", "free text, empty where there is none"),
    # (leads, samples) int16, little-endian, C order: 17,000 to 78,000 records/s at random access
    "signal": ("binary", "the samples: little-endian int16, (leads, samples), lead after lead"),
    "leads": ("list of strings", "names of the leads, in the order of the samples"),
    "sampling_rate": ("int32", "Hz"),
    "gain": ("list of float32", "units a millivolt, a lead"),
    "baseline": ("list of float32", "the sample value of 0 mV, a lead"),
    "quality": ("struct", "what is doubtful about the recording as its database holds it (`ecg_quality`)"),
}
QUALITY = {
    "nan_share": "float32",  # of the samples
    "flat_leads": "string",  # separated by spaces
    "clipped_share": "float32",
    "limb_error_mv": "float32",  # null without a third limb lead
    "peak_to_peak_mv": "float32",
    "implausible_amplitude": "bool",
    "suspected_swap": "string",  # "aVL/aVF", "arms" or ""
}


@dataclass
class Job:
    """What a worker needs beside the range of a shard; small, whatever the size of the database."""

    database: str
    plan: Path
    schema: pa.Schema
    label_ids: dict[str, dict[str, int]]
    max_gap: float | None  # seconds of NaN that are interpolated; None: a recording with any is rejected


@dataclass
class Shard:
    """Rows `start` to `stop` of the plan, all of one split."""

    split: str
    start: int
    stop: int
    path: Path

    @property
    def summary(self) -> Path:
        """Written after the shard itself: where it exists, the shard is finished."""
        return self.path.with_suffix(".json")


# ------------------------------------------------------------------------------------------------------------- rows


def features_of(module, label_sets: dict[str, list[str]]):
    """Columns of a prepared folder. A label set is a list of class ids; None means "not labelled", [] "none"."""
    from datasets import ClassLabel, Features, List, Value

    return Features(
        {
            "record": Value("string"),
            "patient": Value("string"),
            "report": Value("string"),
            "signal": Value("binary"),
            "leads": List(Value("string")),
            "sampling_rate": Value("int32"),
            "gain": List(Value("float32")),
            "baseline": List(Value("float32")),
            "quality": {name: Value(dtype) for name, dtype in QUALITY.items()},
            **{name: List(ClassLabel(names=classes)) for name, classes in label_sets.items()},
            **{name: Value(dtype) for name, dtype in getattr(module, "EXTRA", {}).items()},
        }
    )


def to_row(record: EcgRecord, job: Job) -> dict:
    """The stored row of a recording: its known leads in the model's order, at 500 Hz.

    Samples already at 500 Hz are kept to the bit, also those of a constant lead (carts write zeros for one that was
    not connected): it stays present, a constant row to the model, as under the original's scaling; no limb lead is
    derived from it, and `quality` names it.

    Raises:
        ValueError: the reason why the recording cannot be used: its rule, a colon, the details.
    """
    canonical = canonical_leads(record.leads, record.record)
    order = [canonical.index(lead) for lead in LEADS if lead in canonical]
    samples, leads = record.signal[order], [canonical[row] for row in order]
    gain, baseline = np.asarray(record.gain, dtype=float)[order], np.asarray(record.baseline, dtype=float)[order]
    rate = check_sampling_rate(record.sampling_rate, record.record)
    if samples.shape[1] < MIN_DURATION * rate:
        raise ValueError(f"shorter than {MIN_DURATION:g} s: {samples.shape[1]} samples at {rate:g} Hz")
    missing = samples == MISSING
    millivolts = ((samples - baseline[:, None]) / gain[:, None]).astype(np.float32)
    millivolts[missing] = np.nan
    quality = ecg_quality(millivolts, leads, rate)
    if missing.any():
        names = ", ".join(lead for lead, row in zip(leads, missing, strict=True) if row.any())
        if job.max_gap is None:
            raise ValueError(f"missing samples (NaN): {missing.sum()} in lead {names}")
        try:
            millivolts = interpolate_gaps(millivolts, int(job.max_gap * rate))
        except ValueError as error:
            raise ValueError(f"missing samples (NaN): in lead {names}, {error}") from None
        digital = np.rint(millivolts * gain[:, None] + baseline[:, None]).astype(np.int16)
        samples = np.where(missing, digital, samples)
    if (samples.min(axis=1) == samples.max(axis=1)).all():
        raise ValueError("flat: every lead is constant")
    if rate != STORED_RATE:
        samples, gain, baseline = quantise(resample_ecg(millivolts, rate, STORED_RATE))
    row = {
        "record": record.record,
        "patient": record.patient,
        "report": record.report,
        "signal": samples.astype("<i2").tobytes(),
        "leads": leads,
        "sampling_rate": STORED_RATE,
        "gain": gain.astype(np.float32),
        "baseline": baseline.astype(np.float32),
        "quality": {name: quality[name] for name in QUALITY}
        | {"flat_leads": " ".join(quality["flat_leads"]), "suspected_swap": quality["suspected_swap"] or ""},
        **{name: record.extra.get(name) for name in job.schema.names if name not in COLUMNS},
    }
    for name, ids in job.label_ids.items():
        classes = record.labels.get(name)
        row[name] = None if classes is None else [ids[label] for label in classes]
    return row


def reason_of(error: Exception, record: str) -> str:
    """One line, "rule: details", without the name or path of the recording, which stands beside it."""
    text = " ".join(str(error).split())
    text = re.sub(rf"^(?:\S*[/\\])?{re.escape(record)}: |^\S*[/\\]\S*: ", "", text)
    return text if isinstance(error, (ValueError, OSError)) else f"unexpected {type(error).__name__}: {text}"


def rule_of(reason: str) -> str:
    """What a reason has in common with others: what stands before the details."""
    return reason.partition(":")[0]


# ----------------------------------------------------------------------------------------------------------- shards


def write_shard(job: Job, shard: Shard, report: Callable[[int], object]):
    """Writes a shard's recordings to an Arrow file, all or nothing, and its summary; `report` counts the records."""
    module = importlib.import_module(DATABASES[job.database])
    with pa.memory_map(str(job.plan)) as plan:
        items = pa.ipc.open_file(plan).read_all().slice(shard.start, shard.stop - shard.start).to_pylist()
    partial = shard.path.with_suffix(".partial")
    rejected, rows, count = [], [], 0
    # One process a core is the parallelism here: BLAS threads beside it would only spin.
    with (
        threadpool_limits(1),
        pa.OSFile(str(partial), "wb") as file,
        pa.ipc.new_stream(file, job.schema) as stream,
    ):
        for item in items:
            try:
                rows.append(to_row(module.read(item), job))
                count += 1
            except ImportError:  # of the installation, not of the recording
                raise
            except Exception as error:  # a reader runs into whatever a broken file makes of it
                reason = reason_of(error, item["record"])
                rejected.append({"record": item["record"], "split": shard.split, "reason": reason})
            if len(rows) == BATCH_RECORDS:
                stream.write_batch(pa.RecordBatch.from_pylist(rows, schema=job.schema))
                rows = []
            report(1)
        if rows:
            stream.write_batch(pa.RecordBatch.from_pylist(rows, schema=job.schema))
    os.replace(partial, shard.path)
    write_atomically(shard.summary, json.dumps({"records": count, "rejected": rejected}))


def write_atomically(path: Path, text: str):
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def run_shards(job: Job, shards: list[Shard], workers: int) -> list[dict]:
    """Writes every shard that is not there yet; returns the shards' summaries."""
    todo = [shard for shard in shards if not shard.summary.exists()]
    total, left = (sum(shard.stop - shard.start for shard in some) for some in (shards, todo))
    with tqdm(total=total, initial=total - left, unit=" records", desc=f"prepare {job.database}") as bar:
        if workers <= 1:
            for shard in todo:
                write_shard(job, shard, bar.update)
        else:
            _run_in_processes(job, todo, workers, bar)
    return [json.loads(shard.summary.read_text()) for shard in shards]


def _run_in_processes(job: Job, todo: list[Shard], workers: int, bar: tqdm):
    # Fresh processes: forking one that runs torch's or Arrow's threads can hang.
    context = multiprocessing.get_context("spawn")
    counter, stop, before = context.Value("q", 0), context.Event(), bar.n
    with ProcessPoolExecutor(min(workers, len(todo)) or 1, context, _start_worker, (job, counter, stop)) as pool:
        # Ctrl-C reaches every process of a terminal: they are born deaf to it, and this one tells them.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        pending = {pool.submit(_write_shard_in_worker, shard) for shard in todo}
        signal.signal(signal.SIGINT, handler)
        try:
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                bar.update(before + counter.value - bar.n)
                for future in done:
                    future.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _start_worker(job: Job, counter, stop):
    global _in_worker
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def report(records: int):
        with counter.get_lock():
            counter.value += records
        if stop.is_set():
            raise KeyboardInterrupt

    _in_worker = (job, report)


def _end_with_parent():
    """A worker whose parent was killed must not go on writing beside the next run."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _write_shard_in_worker(shard: Shard):
    job, report = _in_worker
    write_shard(job, shard, report)


# ------------------------------------------------------------------------------------------------------------- plan


def check_plan(plan: pa.Table, kept: pa.Table):
    """No record twice; of what is to be read, every patient in one of the splits, and in one only."""
    names = plan["record"]
    if pc.count_distinct(names).as_py() != len(names):
        counts = pc.value_counts(names)
        name = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
        raise ValueError(f"record {name!r} is planned twice; every recording needs a name of its own.")
    strange = pc.unique(kept["split"].filter(pc.invert(pc.is_in(kept["split"], pa.array(SPLITS))))).to_pylist()
    if strange:
        raise ValueError(f"the plan has the split {strange[0]!r}; it must be one of {', '.join(SPLITS)}.")
    if kept["patient"].null_count:
        name = kept["record"].filter(pc.is_null(kept["patient"]))[0].as_py()
        raise ValueError(f"record {name!r} has no patient; a split needs one for every record.")
    splits = kept.select(["patient", "split"]).group_by("patient").aggregate([("split", "count_distinct")])
    doubled = splits.filter(pc.greater(splits["split_count_distinct"], 1))
    if len(doubled):
        rows = kept.filter(pc.equal(kept["patient"], doubled["patient"][0]))
        raise ValueError(
            f"patient {rows['patient'][0].as_py()!r} is in the splits "
            f"{' and '.join(map(repr, pc.unique(rows['split']).to_pylist()))} (records "
            f"{', '.join(map(repr, rows['record'].to_pylist()[:4]))}): correct the table, a patient belongs to one "
            f"split. {len(doubled)} patients are in more than one."
        )


def make_plan(module, root, limit: int | None, options: dict) -> pa.Table:
    """The module's plan: its first `limit` rows, checked, `split` and `reject` as plain strings."""
    plan = module.plan(root, **options)[:limit]
    for name in ("split", "reject"):
        plan = plan.set_column(plan.column_names.index(name), name, plan[name].cast(pa.string()))
    plan = plan.unify_dictionaries().combine_chunks()
    check_plan(plan, plan.filter(pc.is_null(plan["reject"])).select(["record", "patient", "split"]))
    return plan


def reading_order(plan: pa.Table) -> pa.Array:
    """Rows of the plan that are to be read, split after split."""
    rank = pc.index_in(plan["split"], pa.array(SPLITS)).fill_null(len(SPLITS)).to_numpy().astype(np.int8)
    rank[np.asarray(pc.is_valid(plan["reject"]))] = len(SPLITS)
    return pa.array(np.argsort(rank, kind="stable")[: (rank < len(SPLITS)).sum()])


def ordered_batches(plan: pa.Table, order: pa.Array) -> Iterator[pa.RecordBatch]:
    """The rows of `order`, a batch at a time, without the column that is empty in all of them."""
    columns = plan.drop_columns(["reject"])
    for start in range(0, len(order), PLAN_BATCH):
        yield from columns.take(order[start : start + PLAN_BATCH]).combine_chunks().to_batches()


def fingerprint_of(plan: pa.Table, order: pa.Array, settings) -> str:
    """What a resumed run must agree with: the settings and every row that is to be read."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for batch in ordered_batches(plan, order):
        digest.update(batch.serialize())
    return digest.hexdigest()


def write_plan(plan: pa.Table, order: pa.Array, path: Path):
    partial = path.with_suffix(".partial")
    schema = plan.drop_columns(["reject"]).schema
    with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in ordered_batches(plan, order):
            writer.write_batch(batch)
    os.replace(partial, path)


def shards_of(splits: pa.ChunkedArray, work: Path) -> list[Shard]:
    """Ranges of the plan, whose rows are of these splits in this order."""
    shards, start = [], 0
    counts = {row["values"]: row["counts"] for row in pc.value_counts(splits).to_pylist()}
    for split in SPLITS:
        stop = start + counts.get(split, 0)
        for number, first in enumerate(range(start, stop, SHARD_RECORDS)):
            path = work / f"{split}-{number:05d}.arrow"
            shards.append(Shard(split, first, min(first + SHARD_RECORDS, stop), path))
        start = stop
    return shards


# ----------------------------------------------------------------------------------------------------------- folder


def prepare(
    database: str,
    output: str | Path,
    *,
    root=None,
    workers: int = 1,
    limit: int | None = None,
    nan: str = "reject",
    max_gap: float = 0.1,
    **options,
) -> Path:
    """Prepares a database into the folder `output`.

    Args:
        database: a key of `databases.DATABASES`; `options` are the module's own (see its `plan`).
        root: folder of the raw files.
        workers: processes.
        limit: at most this many recordings.
        nan: what becomes of a recording with missing samples: "reject", or "interpolate" gaps of at most `max_gap` s.

    Returns:
        Path of the folder.

    Raises:
        ValueError: when the tables do not fit together, when a patient is in two splits, when `output` holds something
            else, or when no recording at all could be used.
        OSError: when the disk is full; the same call goes on from there.
    """
    output = Path(output)
    module = importlib.import_module(DATABASES[database])
    plan = make_plan(module, root, limit, options)
    label_sets = module.label_sets(plan) if hasattr(module, "label_sets") else module.LABEL_SETS
    features = features_of(module, label_sets)
    gap = max_gap if nan == "interpolate" else None
    order = reading_order(plan)
    fingerprint = fingerprint_of(plan, order, [database, module.VERSION, gap, str(features)])
    if is_finished(output, fingerprint):
        return output
    work = open_work(output, fingerprint)
    write_plan(plan, order, work / "plan.arrow")
    refused, planned = plan.filter(pc.is_valid(plan["reject"])), len(plan)
    rejected = refused.select(["record", "split", "reject"]).rename_columns(["record", "split", "reason"]).to_pylist()
    shards = shards_of(plan["split"].take(order), work)
    del plan, order, refused  # workers read the file: nothing of the database's size stays in memory
    pa.default_memory_pool().release_unused()

    label_ids = {name: {label: row for row, label in enumerate(classes)} for name, classes in label_sets.items()}
    summaries = run_shards(Job(database, work / "plan.arrow", features.arrow_schema, label_ids, gap), shards, workers)
    rejected += [row for summary in summaries for row in summary["rejected"]]
    if len(rejected) == planned:
        reasons = "; ".join(f"{row['record']}: {row['reason']}" for row in rejected[:3])
        raise ValueError(f"none of the {planned} recordings could be used ({reasons}).")
    inputs = checksums(module.inputs(root, **options))
    options |= {"limit": limit, "nan": nan, "max_gap": gap}
    description = {
        "database": database,
        "fingerprint": fingerprint,
        "records": place_shards(output, shards, summaries, features, fingerprint),
        "rejected": len(rejected),
        "rejected_by_rule": dict(Counter(rule_of(row["reason"]) for row in rejected).most_common()),
        # Names of files only: where they lie on this machine is nobody's business.
        "options": {name: os.path.basename(str(value)) for name, value in options.items() if value not in (None, [])},
        "inputs": inputs,
    }
    finish(module, output, description, rejected, features)
    return output


def is_finished(output: Path, fingerprint: str) -> bool:
    """Whether `output` is the whole dataset already; ValueError when it is another one."""
    if not (output / "dataset_dict.json").exists():
        return False
    if _stored_fingerprint(output / "melp.json") != fingerprint:
        raise ValueError(f"{output} already holds another dataset: choose another --output, or delete it.")
    shutil.rmtree(output / ".work", ignore_errors=True)  # a run that was killed at its very end
    return True


def open_work(output: Path, fingerprint: str) -> Path:
    """The folder of unfinished work, new or of an earlier run of the same plan, without half-written files."""
    work = output / ".work"
    if work.exists() and _stored_fingerprint(work / "plan.json") not in (None, fingerprint):
        raise ValueError(f"{output} holds an unfinished run with other options: repeat that, or delete {output}.")
    if not work.exists() and output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty: choose another --output.")
    work.mkdir(parents=True, exist_ok=True)
    for leftover in work.glob("*.partial"):
        leftover.unlink()
    write_atomically(work / "plan.json", json.dumps({"fingerprint": fingerprint}))
    return work


def _stored_fingerprint(path: Path) -> str | None:
    return json.loads(path.read_text())["fingerprint"] if path.exists() else None


def place_shards(output: Path, shards: list[Shard], summaries: list[dict], features, fingerprint: str) -> dict:
    """Moves the shards that hold any recording into the layout of `datasets`; returns the records a split."""
    from datasets import DatasetInfo

    counts = {}
    for split in SPLITS:
        filled = [
            (shard.path, summary["records"])
            for shard, summary in zip(shards, summaries, strict=True)
            if shard.split == split and summary["records"]
        ]
        if not filled:
            continue
        counts[split] = sum(records for _, records in filled)
        folder = output / split
        folder.mkdir(exist_ok=True)
        names = [f"data-{number:05d}-of-{len(filled):05d}.arrow" for number in range(len(filled))]
        for name, (path, _) in zip(names, filled, strict=True):
            if path.exists():  # unless an earlier run moved it
                os.replace(path, folder / name)
        state = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": fingerprint[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        }
        (folder / "state.json").write_text(json.dumps(state, indent=2))
        DatasetInfo(features=features).write_to_directory(str(folder))
    return counts


def finish(module, output: Path, description: dict, rejected: list[dict], features):
    """Writes what stands beside the shards; `dataset_dict.json`, written last, makes the folder whole."""
    tables = {split: light_columns(output / split) for split in description["records"]}
    description["with_report"] = sum(map(with_report, tables.values()))
    description["labelled"] = {
        name: sum(len(table) - table[name].null_count for table in tables.values()) for name in label_names(features)
    }
    with open(output / "rejected.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=["record", "split", "reason"])
        writer.writeheader()
        writer.writerows(rejected)
    write_atomically(output / "melp.json", json.dumps(description, indent=2))
    write_atomically(output / "README.md", card(module, output.name, description, features, tables))
    write_atomically(output / "dataset_dict.json", json.dumps({"splits": list(description["records"])}))
    shutil.rmtree(output / ".work")


def checksums(paths: list[Path]) -> dict[str, str]:
    """SHA-256 of each table, and one of all headers in their order, which hold checksums of the signals themselves."""
    headers = [path for path in paths if path.suffix == ".hea"]
    found = {path.name: sha256_of([path]) for path in paths if path.suffix != ".hea"}
    return found | ({f"{len(headers):,} headers": sha256_of(headers)} if headers else {})


def sha256_of(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------------- card

HUB_LICENCES = {"apache-2.0", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "mit", "odbl", "odc-by"}

READING = """
```python
import datasets, numpy

row = datasets.load_from_disk("{folder}")["{split}"][0]
samples = numpy.frombuffer(row["signal"], "<i2").reshape(len(row["leads"]), -1)
millivolts = (samples - numpy.c_[row["baseline"]]) / numpy.c_[row["gain"]]  # (leads, samples)
```

`load_dataset` reads the folder, or its copy on the Hub, as well; with `streaming=True` it copies nothing.
"""


def card(module, name: str, description: dict, features, tables: dict[str, pa.Table]) -> str:
    """The dataset card: counts, prevalence of every label, what was rejected and why, where it comes from."""
    source, splits = module.SOURCE, list(description["records"])
    title = f"{source['name']} {source['version']}".strip()
    blocks = [
        card_metadata(source, title, splits),
        f"# {title}, prepared for MELP",
        "\n".join(f"- {word}: {source[key]}" for word, key in _SOURCE_LINES.items() if source[key]),
        "## Recordings\n\n" + _recordings(tables),
        f"{description['rejected']:,} more were rejected; `rejected.csv` names each.",
        _table(["rule", "recordings"], [[rule, n] for rule, n in description["rejected_by_rule"].items()]),
        "## Doubtful, but kept\n\n" + _doubtful(tables),
    ]
    for label_set, classes in label_names(features).items():
        columns = {split: table[label_set] for split, table in tables.items()}
        blocks += [f"## Labels: {markdown.escape(label_set)}\n\n" + _prevalence(columns, classes)]
    columns = [[markdown.Markdown(f"`{column}`"), kind, meaning] for column, (kind, meaning) in COLUMNS.items()]
    for column, feature in features.items():
        if column in label_names(features):
            columns += [
                [
                    markdown.Markdown(f"`{column}`"),
                    "list of class ids",
                    "a label set; null: not labelled, empty: none of them",
                ]
            ]
        elif column not in COLUMNS:
            columns += [[markdown.Markdown(f"`{column}`"), feature.dtype, "of the database"]]
    blocks += ["## Columns\n\n" + _table(["column", "type", "meaning"], columns)]
    blocks += ["## Reading it\n" + READING.format(folder=name, split=splits[0])]
    settings = "".join(f" --{option.replace('_', '-')} {value}" for option, value in description["options"].items())
    blocks += [f"## How it was made\n\n`prepare.py {description['database']}{settings}`"]
    blocks += [_table(["input", "SHA-256"], [list(item) for item in description["inputs"].items()])]
    return "\n\n".join(block.strip() for block in [*blocks, module.__doc__] if block) + "\n"


_SOURCE_LINES = {"Source": "url", "Licence": "licence", "Cite": "citation"}


def card_metadata(source: dict, title: str, splits: list[str]) -> str:
    """The block that the Hub and `load_dataset` read."""
    from huggingface_hub import DatasetCardData

    licence = re.sub(r"[^a-z0-9.]+", "-", source["licence"].lower()).strip("-")
    known = next((name for name in HUB_LICENCES if licence in (name, f"{name}-1.0")), None)
    licences = {"license": known} if known else {"license": "other", "license_name": licence or "not-stated"}
    files = [{"split": split, "path": f"{split}/data-*.arrow"} for split in splits]
    configs = [{"config_name": "default", "data_files": files}]
    data = DatasetCardData(pretty_name=title, tags=["ecg", "medical"], configs=configs, **licences)
    return f"---\n{data.to_yaml()}\n---"


def light_columns(folder: Path) -> pa.Table:
    """A split's rows without their samples, of which the number is kept (`samples` a lead)."""
    parts = []
    for path in sorted(folder.glob("data-*.arrow")):
        with pa.memory_map(str(path)) as file:
            for batch in pa.ipc.open_stream(file):
                lengths = pc.divide(
                    pc.binary_length(batch["signal"]), pc.multiply(2, pc.list_value_length(batch["leads"]))
                )
                table = pa.Table.from_batches([batch.drop_columns(["signal", "leads", "gain", "baseline"])])
                parts.append(table.append_column("samples", lengths))
    # Copied, as the batches would keep the whole files mapped.
    return pa.concat_tables(parts).combine_chunks()


def label_names(features) -> dict[str, list[str]]:
    """`{label set: [class, ...]}` of a prepared folder's columns."""
    from datasets import ClassLabel, List

    return {
        name: feature.feature.names
        for name, feature in features.items()
        if isinstance(feature, List) and isinstance(feature.feature, ClassLabel)
    }


def _table(header: list[str], rows: list[list]) -> str:
    return markdown.table(header, rows, numeric=False) if rows else ""


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})" if total else "0"


def with_report(table: pa.Table) -> int:
    return pc.sum(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(table["report"])), 0)).as_py()


def _recordings(tables: dict[str, pa.Table]) -> str:
    rows = []
    for split, table in tables.items():
        hours = pc.sum(table["samples"]).as_py() / STORED_RATE / 3600
        patients = pc.count_distinct(table["patient"]).as_py()
        rows.append([split, len(table), patients, f"{hours:,.2f}", with_report(table)])
    return _table(["split", "recordings", "patients", "hours", "with a report"], rows)


def _doubtful(tables: dict[str, pa.Table]) -> str:
    """How many recordings each part of the quality report points at."""
    doubts = {
        "a flat lead": lambda get: pc.not_equal(get("flat_leads"), ""),
        "missing samples": lambda get: pc.greater(get("nan_share"), 0),
        "clipped in 1% or more": lambda get: pc.greater_equal(get("clipped_share"), 0.01),
        "limb leads disagree by more than 0.2 mV": lambda get: pc.greater(get("limb_error_mv"), 0.2),
        "range above 10 or below 0.1 mV": lambda get: get("implausible_amplitude"),
        "leads look exchanged": lambda get: pc.not_equal(get("suspected_swap"), ""),
    }
    rows = []
    for words, doubtful in doubts.items():
        found = [pc.sum(doubtful(lambda n, t=t: pc.struct_field(t["quality"], n))).as_py() for t in tables.values()]
        rows.append([words, *(_share(count or 0, len(t)) for count, t in zip(found, tables.values(), strict=True))])
    return _table([markdown.Markdown("by `quality`"), *tables], rows)


def _prevalence(columns: dict[str, pa.ChunkedArray], classes: list[str]) -> str:
    """Recordings of each class, and their share of those that are labelled."""
    labelled = [len(column) - column.null_count for column in columns.values()]
    ids = [np.asarray(pc.list_flatten(column)) for column in columns.values()]
    counts = [np.bincount(of_split, minlength=len(classes)).tolist() for of_split in ids]
    rows = [["(labelled)", *labelled]]
    for index, label in enumerate(classes):
        rows.append([label, *(_share(count[index], n) for count, n in zip(counts, labelled, strict=True))])
    return _table(["label", *columns], rows)


# ---------------------------------------------------------------------------------------------------- command line


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(dest="database", required=True, metavar="DATABASE")
    for module_name in dict.fromkeys(DATABASES.values()):
        module = importlib.import_module(module_name)
        name, *aliases = (name for name, of in DATABASES.items() if of == module_name)
        command = subparsers.add_parser(
            name,
            aliases=aliases,
            help=module.__doc__.strip().splitlines()[0].replace("%", "%%"),  # CODE-15%
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name != "synthetic":
            command.add_argument("--root", required=True, help="folder of the raw files")
        command.add_argument("--output", required=True, help="folder to write")
        command.add_argument("--workers", type=int, default=1, help="processes (default 1)")
        command.add_argument("--limit", type=int, help="at most this many recordings")
        command.add_argument("--nan", choices=("reject", "interpolate"), default="reject", help="missing samples")
        command.add_argument(
            "--max-gap", type=float, default=0.1, metavar="S", help="longest gap to interpolate (0.1)"
        )
        module.add_arguments(command)
    options = vars(parser.parse_args(arguments))
    database, output = options.pop("database"), options.pop("output")
    again = "the same command goes on from here"
    try:
        folder = prepare(database, output, **options)
    except (ValueError, OSError, ImportError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            sys.exit(f"prepare.py: the disk of {output} is full: make room (120 KB a 10 s recording); {again}.")
        sys.exit(f"prepare.py: {error}")
    except BrokenProcessPool:
        sys.exit(f"prepare.py: a worker was killed (out of memory? then take fewer --workers); {again}.")
    except KeyboardInterrupt:
        sys.exit(f"prepare.py: interrupted; {again}.")
    description = json.loads((folder / "melp.json").read_text())
    counts = ", ".join(f"{count:,} {split}" for split, count in description["records"].items())
    print(f"{folder}: {sum(description['records'].values()):,} recordings kept ({counts}); ", end="")
    print(f"{description['rejected']:,} rejected (rejected.csv)")
    for rule, count in description["rejected_by_rule"].items():
        print(f"    {count:9,}  {rule}")
    labelled = ", ".join(f"{count:,} by {name}" for name, count in description["labelled"].items())
    print(f"With a report: {description['with_report']:,}; labelled: {labelled or 'none'}")
    print(f"Next:\n    {next_command(description, folder)}")


def next_command(description: dict, folder: Path) -> str:
    if description["with_report"]:
        return f"accelerate launch train.py --data {folder}"
    if any(description["labelled"].values()):
        return f"python evaluate.py zero-shot --model MODEL --data {folder}"
    return f"accelerate launch train.py recipes/ecg.yaml --data {folder}"


if __name__ == "__main__":
    main()
