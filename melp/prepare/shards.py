"""Shards of a prepared folder: written by worker processes, each all or nothing, so that a killed run can continue."""

import importlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from melp.databases import DATABASES
from melp.files import read_json, write_atomically
from melp.prepare.rows import Job, reason_of, to_row

BATCH_RECORDS = 100  # rows of an Arrow record batch: 12 MB at 10 s
BATCH_BYTES = 1 << 27  # or fewer of long recordings: a batch holds less than 2 GiB of samples


@dataclass
class Shard:
    """Rows `start` to `stop` of the plan, all of one split."""

    split: str
    start: int
    stop: int
    path: Path

    @property
    def summary(self) -> Path:
        """Returns the summary's path. It is written after the shard: where it exists, the shard is finished."""
        return self.path.with_suffix(".json")


def write_shard(job: Job, shard: Shard, report: Callable[[int], object]):
    """Writes a shard's recordings to an Arrow file, all or nothing, and its summary; `report` counts the records."""
    module = importlib.import_module(DATABASES[job.database])
    with pa.memory_map(str(job.plan)) as plan:
        items = pa.ipc.open_file(plan).read_all().slice(shard.start, shard.stop - shard.start).to_pylist()
    rejected, tracings = [], []

    def write(path: Path):
        rows, size = [], 0
        # One process per core is the parallelism here: BLAS threads beside it would only spin.
        with (
            threadpool_limits(1),
            pa.OSFile(str(path), "wb") as file,
            pa.ipc.new_stream(file, job.schema) as stream,
        ):
            for item in items:
                try:
                    rows.append(to_row(module.read(item), job))
                    size += len(rows[-1]["signal"])
                    tracings.append((rows[-1]["record"], rows[-1]["signal_hash"]))
                except ImportError:  # of the installation, not of the recording
                    raise
                except Exception as error:  # a reader runs into whatever a broken file makes of it
                    reason = reason_of(error, item["record"])
                    rejected.append({"record": item["record"], "split": shard.split, "reason": reason})
                if len(rows) == BATCH_RECORDS or size >= BATCH_BYTES:
                    stream.write_batch(pa.RecordBatch.from_pylist(rows, schema=job.schema))
                    rows, size = [], 0
                report(1)
            if rows:
                stream.write_batch(pa.RecordBatch.from_pylist(rows, schema=job.schema))

    write_atomically(shard.path, write)
    summary = {"records": len(tracings), "rejected": rejected}
    write_atomically(shard.summary, json.dumps(summary | ({"tracings": tracings} if job.list_tracings else {})))


def run_shards(job: Job, shards: list[Shard], workers: int) -> list[dict]:
    """Writes every shard that is not there yet and returns the summaries of all."""
    todo = [shard for shard in shards if not shard.summary.exists()]
    total, left = (sum(shard.stop - shard.start for shard in some) for some in (shards, todo))
    with tqdm(total=total, initial=total - left, unit=" records", desc=f"prepare {job.database}") as bar:
        if workers <= 1:
            for shard in todo:
                write_shard(job, shard, bar.update)
        else:
            _run_in_processes(job, todo, workers, bar)
    return [read_json(shard.summary) for shard in shards]


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
    """Ends a worker whose parent was killed: it must not continue writing beside the next run."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _write_shard_in_worker(shard: Shard):
    job, report = _in_worker
    write_shard(job, shard, report)
