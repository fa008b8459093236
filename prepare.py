"""Turns a database's raw files into one format: a folder for `datasets.load_from_disk`.

    python prepare.py synthetic --output DIR --records 4000
    python prepare.py ptbxl --root RAW --output DIR --workers 8
    python prepare.py manifest --csv FILE --root RAW --output DIR

A recording becomes one row: int16 samples of its leads at 500 Hz with their gain, the report, the labels, patient and
split. One that cannot be used costs a line in `rejected.csv`, never the run. Interrupted, the same command goes on
where it stopped.
"""

import argparse
import csv
import hashlib
import importlib
import json
import multiprocessing
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, DatasetInfo, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from data import STORED_RATE
from databases import DATABASES, SPLITS, EcgRecord
from databases.wfdb_record import MISSING, quantise
from processing_melp import LEADS, canonical_leads, check_sampling_rate, resample_ecg

MIN_DURATION = 2.0  # s
SHARD_RECORDS = 1000

# ------------------------------------------------------------------------------------------------------------- rows


def features_of(module, table: pa.Table) -> Features:
    """Columns of a prepared folder. A label set is a list of class ids; None means "not labelled", [] "none"."""
    return Features(
        {
            "record": Value("string"),
            "patient": Value("string"),
            "report": Value("string"),
            # (leads, samples) int16, little-endian, C order: 17,000 to 78,000 records/s at random access
            "signal": Value("binary"),
            "leads": List(Value("string")),
            "sampling_rate": Value("int32"),
            "gain": List(Value("float32")),
            "baseline": List(Value("float32")),
            **{name: List(ClassLabel(names=classes)) for name, classes in label_sets_of(module, table).items()},
            **{name: Value(dtype) for name, dtype in getattr(module, "EXTRA", {}).items()},
        }
    )


def label_sets_of(module, table: pa.Table) -> dict[str, list[str]]:
    return module.label_sets(table) if hasattr(module, "label_sets") else module.LABEL_SETS


def to_row(record: EcgRecord, features: Features) -> dict:
    """The stored row of a recording: its known leads in the model's order, at 500 Hz.

    Samples already at 500 Hz are kept to the bit.

    Raises:
        ValueError: the reason why the recording cannot be used.
    """
    canonical = canonical_leads(record.leads, record.record)
    order = [canonical.index(lead) for lead in LEADS if lead in canonical]
    if not order:
        raise ValueError(f"none of its leads ({', '.join(record.leads)}) is one of the twelve")
    signal, leads = record.signal[order], [canonical[row] for row in order]
    gain, baseline = np.asarray(record.gain, dtype=float)[order], np.asarray(record.baseline, dtype=float)[order]
    rate = check_sampling_rate(record.sampling_rate, record.record)
    if signal.shape[1] < MIN_DURATION * rate:
        raise ValueError(f"shorter than {MIN_DURATION:g} s: {signal.shape[1]} samples at {rate:g} Hz")
    missing = (signal == MISSING).sum(axis=1)
    if missing.any():
        names = ", ".join(lead for lead, count in zip(leads, missing, strict=True) if count)
        raise ValueError(f"{missing.sum()} missing samples (NaN) in lead {names}")
    if (signal.min(axis=1) == signal.max(axis=1)).all():
        raise ValueError("flat: every lead is constant")
    if rate != STORED_RATE:
        millivolts = (signal - baseline[:, None]) / gain[:, None]
        signal, gain, baseline = quantise(resample_ecg(millivolts, rate, STORED_RATE))
    row = {
        "record": record.record,
        "patient": record.patient,
        "report": record.report,
        "signal": signal.astype("<i2").tobytes(),
        "leads": leads,
        "sampling_rate": STORED_RATE,
        "gain": gain.astype(np.float32),
        "baseline": baseline.astype(np.float32),
    }
    for name, feature in features.items():
        if isinstance(feature, List) and isinstance(feature.feature, ClassLabel):
            classes = record.labels.get(name)
            row[name] = None if classes is None else [feature.feature.str2int(label) for label in classes]
        elif name not in row:
            row[name] = record.extra.get(name)
    return row


# ----------------------------------------------------------------------------------------------------------- shards


def write_shard(database: str, items: list[dict], features: Features, path: Path) -> dict:
    """Writes the recordings of `items` to an Arrow file, all or nothing; returns (and stores beside it) a summary."""
    module = importlib.import_module(f"databases.{DATABASES[database]}")
    partial = path.with_suffix(".partial")
    rejected = []
    # One process a core is the parallelism here: BLAS threads beside it would only spin.
    with (
        threadpool_limits(1),
        ArrowWriter(features=features, path=str(partial), writer_batch_size=100) as writer,
    ):
        for item in items:
            try:
                row = to_row(module.read(item), features)
            except (ValueError, OSError) as error:
                reason = str(error).removeprefix(f"{item['record']}: ")
                rejected.append({"record": item["record"], "split": item["split"], "reason": reason})
                continue
            writer.write(row)
        num_examples, num_bytes = writer.finalize()
    summary = {"file": path.name, "records": num_examples, "bytes": num_bytes, "rejected": rejected}
    os.replace(partial, path)
    _write_atomically(path.with_suffix(".json"), json.dumps(summary))
    return summary


def _write_atomically(path: Path, text: str):
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def run_shards(database, items, features, work: Path, workers: int) -> dict[str, list[dict]]:
    """Writes every shard that is not there yet; returns the shards' summaries by split."""
    jobs = []
    for split in SPLITS:
        of_split = [item for item in items if item["split"] == split]
        for start in range(0, len(of_split), SHARD_RECORDS):
            path = work / f"{split}-{start // SHARD_RECORDS:05d}.arrow"
            jobs.append((split, of_split[start : start + SHARD_RECORDS], path))
    done: dict[str, dict[str, dict]] = {split: {} for split in SPLITS}
    with tqdm(total=len(items), unit="record", desc=f"prepare {database}", smoothing=0.05) as bar:

        def finish(split, chunk, path, summary):
            done[split][path.name] = summary
            bar.update(len(chunk))

        todo = []
        for split, chunk, path in jobs:
            if path.with_suffix(".json").exists():
                finish(split, chunk, path, json.loads(path.with_suffix(".json").read_text()))
            else:
                todo.append((split, chunk, path))
        if workers <= 1:
            for split, chunk, path in todo:
                finish(split, chunk, path, write_shard(database, chunk, features, path))
        else:
            # Fresh processes: forking one that runs torch's or Arrow's threads can hang.
            with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
                futures = [
                    (split, chunk, path, pool.submit(write_shard, database, chunk, features, path))
                    for split, chunk, path in todo
                ]
                try:
                    for split, chunk, path, future in futures:
                        finish(split, chunk, path, future.result())
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    return {split: [done[split][name] for name in sorted(done[split])] for split in SPLITS if done[split]}


# ----------------------------------------------------------------------------------------------------------- folder


def check_patients(items: list[dict]):
    """No patient in two splits; no record twice."""
    split_of, seen = {}, set()
    for item in items:
        if item["record"] in seen:
            raise ValueError(f"record {item['record']!r} is planned twice; every recording needs a name of its own.")
        seen.add(item["record"])
        if split_of.setdefault(item["patient"], item["split"]) != item["split"]:
            raise ValueError(
                f"patient {item['patient']!r} is in the splits {split_of[item['patient']]!r} and {item['split']!r} "
                f"(record {item['record']!r}): correct the table, a patient belongs to one split."
            )


def prepare(database: str, output: str | Path, *, root=None, workers: int = 1, limit: int | None = None, **options):
    """Prepares a database into the folder `output`.

    Args:
        database: a key of `databases.DATABASES`; `options` are the module's own (see its `plan`).
        root: folder of the raw files.
        workers: processes.
        limit: at most this many recordings.

    Returns:
        Path of the folder.

    Raises:
        ValueError: when the tables do not fit together, when a patient is in two splits, when `output` holds something
            else, or when no recording at all could be used.
    """
    output = Path(output)
    module = importlib.import_module(f"databases.{DATABASES[database]}")
    table = module.plan(root, **options)[:limit]
    unread = table.filter(pc.is_valid(table["reject"])).select(["record", "split", "reject"])
    unread = unread.rename_columns(["record", "split", "reason"]).to_pylist()
    items = table.filter(pc.is_null(table["reject"])).to_pylist()
    check_patients(items)
    features = features_of(module, table)
    # The plan is what a resumed run must agree with.
    fingerprint = hashlib.sha256(
        json.dumps([database, getattr(module, "VERSION", 0), items, str(features)]).encode()
    ).hexdigest()
    if (output / "dataset_dict.json").exists():
        if _stored_fingerprint(output / "melp.json") == fingerprint:
            return output
        raise ValueError(f"{output} already holds another dataset: choose another --output, or delete it.")
    work = output / ".work"
    if work.exists() and _stored_fingerprint(work / "plan.json") != fingerprint:
        raise ValueError(f"{output} holds an unfinished run with other options: repeat that, or delete {output}.")
    if not work.exists() and output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty: choose another --output.")
    work.mkdir(parents=True, exist_ok=True)
    _write_atomically(work / "plan.json", json.dumps({"fingerprint": fingerprint}))
    shards = run_shards(database, items, features, work, workers)
    rejected = unread + [row for summaries in shards.values() for summary in summaries for row in summary["rejected"]]
    if len(rejected) == len(table):
        reasons = "; ".join(f"{row['record']}: {row['reason']}" for row in rejected[:3])
        raise ValueError(f"none of the {len(table)} recordings could be used ({reasons}).")
    assemble(database, output, shards, rejected, features, fingerprint)
    return output


def _stored_fingerprint(path: Path) -> str | None:
    return json.loads(path.read_text())["fingerprint"] if path.exists() else None


def assemble(database, output: Path, shards, rejected, features: Features, fingerprint: str):
    """Moves the shards into the layout of `datasets`; `dataset_dict.json`, written last, makes the folder valid."""
    for split, summaries in shards.items():
        folder = output / split
        folder.mkdir(exist_ok=True)
        files = []
        for index, summary in enumerate(summaries):
            name = f"data-{index:05d}-of-{len(summaries):05d}.arrow"
            if not (folder / name).exists():
                os.replace(output / ".work" / summary["file"], folder / name)
            files.append({"filename": name})
        state = {
            "_data_files": files,
            "_fingerprint": fingerprint[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        }
        (folder / "state.json").write_text(json.dumps(state, indent=2))
        DatasetInfo(features=features, description=f"{database}, prepared for MELP").write_to_directory(str(folder))
    with open(output / "rejected.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=["record", "split", "reason"])
        writer.writeheader()
        writer.writerows(rejected)
    counts = {split: sum(summary["records"] for summary in summaries) for split, summaries in shards.items()}
    description = {"database": database, "fingerprint": fingerprint, "records": counts, "rejected": len(rejected)}
    _write_atomically(output / "melp.json", json.dumps(description, indent=2))
    _write_atomically(output / "README.md", card(database, output, counts, rejected, features))
    _write_atomically(output / "dataset_dict.json", json.dumps({"splits": list(shards)}))
    shutil.rmtree(output / ".work")


def card(database: str, output: Path, counts: dict[str, int], rejected: list[dict], features: Features) -> str:
    """The dataset card: counts, prevalence of every label, what was rejected and why."""
    from datasets import Dataset, concatenate_datasets

    lines = [f"# {database}, prepared for MELP", "", "| split | recordings |", "|---|---|"]
    lines += [f"| {split} | {count:,} |" for split, count in counts.items()]
    lines += ["", f"{len(rejected):,} recordings were rejected (`rejected.csv`)."]
    for name, feature in features.items():
        if not (isinstance(feature, List) and isinstance(feature.feature, ClassLabel)):
            continue
        lines += ["", f"## {name}", "", "| label | " + " | ".join(counts) + " |", "|---|" + "---|" * len(counts)]
        tables = []
        for split in counts:
            files = sorted((output / split).glob("data-*.arrow"))
            labels = concatenate_datasets([Dataset.from_file(str(f)).select_columns([name]) for f in files])[name]
            ids = [label for row in labels if row is not None for label in row]
            tables.append(np.bincount(ids, minlength=len(feature.feature.names)))
        for index, label in enumerate(feature.feature.names):
            lines.append(f"| {label} | " + " | ".join(str(table[index]) for table in tables) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(dest="database", required=True, metavar="DATABASE")
    for name, module_name in DATABASES.items():
        module = importlib.import_module(f"databases.{module_name}")
        command = subparsers.add_parser(
            name,
            help=module.__doc__.strip().splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name != "synthetic":
            command.add_argument("--root", required=True, help="folder of the raw files")
        command.add_argument("--output", required=True, help="folder to write")
        command.add_argument("--workers", type=int, default=1, help="processes (default 1)")
        command.add_argument("--limit", type=int, help="at most this many recordings")
        module.add_arguments(command)
    options = vars(parser.parse_args(arguments))
    try:
        output = prepare(options.pop("database"), options.pop("output"), **options)
    except (ValueError, OSError) as error:
        sys.exit(f"prepare.py: {error}")
    except KeyboardInterrupt:
        sys.exit("prepare.py: interrupted; the same command goes on from here.")
    description = json.loads((output / "melp.json").read_text())
    counts = ", ".join(f"{count:,} {split}" for split, count in description["records"].items())
    print(f"{output}: {counts}; {description['rejected']} rejected (rejected.csv). Next:")
    print(f"    accelerate launch train.py --data {output}")


if __name__ == "__main__":
    main()
