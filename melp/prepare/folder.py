"""A database's raw files to a prepared folder, for `datasets.load_from_disk` and `load_dataset`.

A recording becomes one row: int16 samples of its leads at 500 Hz with their gain, the report, the labels, patient,
split and a quality report. One that cannot be used costs a line in `rejected.csv`, never the run. Interrupted or
killed, the same call continues where it stopped: finished shards of 1,000 recordings are kept, begun ones redone.
"""

import importlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from melp.data.stored import label_names, stored_features
from melp.databases import DATABASES, SPLITS
from melp.files import LOCK, FolderLock, explaining_full_disk, read_json, sha256, write_atomically, write_csv
from melp.prepare.copies import count_copies, find_copies, keep_together, write_copies
from melp.prepare.dataset_card import count_reports, dataset_card, light_columns
from melp.prepare.plan import cut_into_shards, make_plan, plan_fingerprint, reading_order, write_plan
from melp.prepare.rows import ROW_VERSION, Job, rule_of
from melp.prepare.shards import Shard, run_shards


def prepare(
    database: str,
    output: str | Path,
    *,
    root=None,
    workers: int = 1,
    limit: int | None = None,
    nan: str = "reject",
    max_gap: float = 0.1,
    accept_mismatch: bool = False,
    one_gain: float | str | None = None,
    **options,
) -> Path:
    """Prepares a database into the folder `output`.

    Args:
        database: a key of `databases.DATABASES`; `options` are the module's own (see its `plan`).
        root: folder of the raw files.
        workers: processes.
        limit: at most this many recordings.
        nan: what becomes of a recording with missing samples: "reject", or "interpolate" gaps of at most `max_gap` s.
        accept_mismatch: read recordings that contradict the checksums or first samples of their headers, too.
        one_gain: units per mV, or "median" of a recording's own gains, for all leads of a recording whose limb leads
            agree in digital units but not in mV (LUDB's headers); None leaves the gains as they are.

    Returns:
        Path of the folder.

    Raises:
        ValueError: when the tables do not fit together, a patient is in two splits, `output` holds something else or
            another process writes it, no recording at all could be used, or the disk is full; after the last, the
            same call continues where it stopped.
    """
    output = Path(output)
    if not max_gap >= 0:
        raise ValueError(f"--max-gap {max_gap} is no number of seconds.")
    module = importlib.import_module(DATABASES[database])
    plan = make_plan(module, root, limit, options)
    if accept_mismatch:
        plan = plan.append_column("verify", pa.repeat(pa.scalar(False), len(plan)))
    label_sets = module.label_sets(plan) if hasattr(module, "label_sets") else module.LABEL_SETS
    features = stored_features(label_sets, getattr(module, "EXTRA", {}))
    gap = max_gap if nan == "interpolate" else None
    order = reading_order(plan)
    split_by_record = (plan.schema.metadata or {}).get(b"split_by_record") == b"True"
    fingerprint = plan_fingerprint(plan, order, [database, module.VERSION, ROW_VERSION, gap, one_gain, str(features)])
    check_output(output, fingerprint)
    with FolderLock(output, f"melp.prepare {database}") as lock, explaining_full_disk(output):
        if is_finished(output, fingerprint):
            return output
        work = open_work(output, fingerprint)
        write_plan(plan, order, work / "plan.arrow")
        refused = plan.filter(pc.is_valid(plan["reject"])).select(["record", "split", "reject"])
        rejected = refused.rename_columns(["record", "split", "reason"]).to_pylist()
        planned, shards = len(plan), cut_into_shards(plan["split"].take(order), work)
        del plan, order, refused  # workers read the file: nothing of the database's size stays in memory
        pa.default_memory_pool().release_unused()

        label_ids = {name: {label: row for row, label in enumerate(classes)} for name, classes in label_sets.items()}
        job = Job(database, work / "plan.arrow", features.arrow_schema, label_ids, gap, one_gain, split_by_record)
        summaries = run_shards(job, shards, workers)
        rejected += [row for summary in summaries for row in summary["rejected"]]
        lock.check()  # a process that slept for long may have lost the folder
        if len(rejected) == planned:
            reasons = "; ".join(f"{row['record']}: {row['reason']}" for row in rejected[:3])
            raise ValueError(f"none of the {planned} recordings could be used ({reasons}).")
        moved = 0
        if split_by_record:
            shards, summaries, moved = keep_together(shards, summaries)
        inputs = checksums(module.inputs(root, **options))
        options |= {"limit": limit, "nan": nan, "max_gap": gap, "one_gain": one_gain}
        options |= {"accept_mismatch": accept_mismatch or None}
        description = {
            "database": database,
            "fingerprint": fingerprint,
            "records": place_shards(output, shards, summaries, features, fingerprint),
            "rejected": len(rejected),
            "rejected_by_rule": dict(Counter(rule_of(row["reason"]) for row in rejected).most_common()),
            # Names of files only: where they lie on this machine is nobody's business.
            "options": {
                name: os.path.basename(str(value)) for name, value in options.items() if value not in (None, [])
            },
            "copies": {"moved": moved},
            "inputs": inputs,
        }
        finish(module, output, description, rejected, features)
    return output


def is_finished(output: Path, fingerprint: str) -> bool:
    """Returns whether `output` is the whole dataset already, and clears what a kill at its very end left."""
    if not (output / "dataset_dict.json").exists():
        return False
    check_output(output, fingerprint)
    shutil.rmtree(output / ".work", ignore_errors=True)
    return True


def check_output(output: Path, fingerprint: str):
    """Raises ValueError where `output` holds anything but this dataset, finished or begun."""
    if (output / "dataset_dict.json").exists():
        if _stored_fingerprint(output / "melp.json") != fingerprint:
            raise ValueError(f"{output} already holds another dataset: choose another --output, or delete it.")
    elif (output / ".work").exists():
        if _stored_fingerprint(output / ".work" / "plan.json") not in (None, fingerprint):
            raise ValueError(f"{output} holds an unfinished run with other options: repeat that, or delete {output}.")
    elif output.exists() and any(not path.name.startswith(LOCK) for path in output.iterdir()):
        raise ValueError(f"{output} is not empty: choose another --output.")


def open_work(output: Path, fingerprint: str) -> Path:
    """Returns the folder of unfinished work, new or of an earlier run of the same plan, without half-written files."""
    check_output(output, fingerprint)
    work = output / ".work"
    work.mkdir(parents=True, exist_ok=True)
    for leftover in work.glob("*.partial"):
        leftover.unlink()
    write_atomically(work / "plan.json", json.dumps({"fingerprint": fingerprint}))
    return work


def _stored_fingerprint(path: Path) -> str | None:
    return read_json(path).get("fingerprint") if path.exists() else None


def place_shards(output: Path, shards: list[Shard], summaries: list[dict], features, fingerprint: str) -> dict:
    """Moves the shards that hold any recording into the layout of `datasets`; returns how many each split has."""
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
        write_atomically(folder / "state.json", json.dumps(state, indent=2))
        DatasetInfo(features=features).write_to_directory(str(folder))
    return counts


def finish(module, output: Path, description: dict, rejected: list[dict], features):
    """Writes the files beside the shards; `dataset_dict.json`, written last, makes the folder whole."""
    tables = {split: light_columns(output / split) for split in description["records"]}
    description["with_report"] = sum(map(count_reports, tables.values()))
    description["labelled"] = {
        name: sum(len(table) - table[name].null_count for table in tables.values()) for name in label_names(features)
    }
    copies = find_copies(tables)
    description["copies"] = count_copies(copies) | description["copies"]
    write_copies(copies, output / "copies.csv")
    write_csv(output / "rejected.csv", ["record", "split", "reason"], rejected)
    write_atomically(output / "melp.json", json.dumps(description, indent=2))
    write_atomically(output / "README.md", dataset_card(module, output.name, description, features, tables))
    write_atomically(output / "dataset_dict.json", json.dumps({"splits": list(description["records"])}))
    shutil.rmtree(output / ".work")


def checksums(paths: list[Path]) -> dict[str, str]:
    """Returns the SHA-256 of each table, and one of all headers in order, which hold checksums of the signals."""
    headers = [path for path in paths if path.suffix == ".hea"]
    tables = {path.name: sha256(path) for path in paths if path.suffix != ".hea"}
    return tables | ({f"{len(headers):,} headers": sha256(*headers)} if headers else {})
