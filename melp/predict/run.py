"""A run of predict.py: a few recordings on the screen, any number into a folder, by any number of processes."""

import contextlib
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from tqdm import tqdm

from melp.files import FolderLock, explaining_full_disk, write_atomically
from melp.names import name_hash
from melp.notice import NOTICE
from melp.predict.options import Options
from melp.predict.output import as_text, read_rows, write_csv, write_jsonl, write_parquet
from melp.predict.paths import list_recordings
from melp.predict.plan import Plan, Shard
from melp.predict.predictor import Predictor
from melp.predict.reading import Item, Recordings, picture_name, read_all

FEW = 20  # recordings that are shown on the screen


def run(options: Options):
    """Predicts all recordings.

    Raises:
        ValueError: saying what is wrong with the options, the model, or the output folder.
    """
    # Only Accelerator reads this by itself: without it, processes on a CPU would know nothing of each other. Listing
    # millions of files, and waiting for the slowest process, may take long.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), **_patience())
    if options.num_workers is None:
        cores = max(1, (os.cpu_count() or 1) // state.num_processes)
        options.num_workers = min(8, cores) if state.device.type == "cuda" else 1
    if options.output is None:
        if state.num_processes > 1:
            raise ValueError("several processes write to a folder: name it with --output.")
        _to_screen(options, state)
    else:
        with explaining_full_disk(options.output):
            _to_folder(options, state)


def _patience() -> dict:
    return {"timeout": timedelta(days=30)} if int(os.environ.get("WORLD_SIZE", 1)) > 1 else {}


def _predictor(options: Options, state: PartialState, key: bytes = b"") -> Predictor:
    return Predictor(
        options.model,
        state.device,
        options.findings,
        options.label_set,
        options.draft,
        options.embeddings,
        options.keep_identifiers,
        key,
        options.batch_size,
    )


# ------------------------------------------------------------------------------------------------------------- screen


def _to_screen(options: Options, state: PartialState):
    paths = list_recordings(options.sources)
    if len(paths) > FEW and options.format == "table":
        raise ValueError(
            f"{len(paths):,} recordings are too many for the screen: name a folder with --output, or take --format "
            "csv or jsonl."
        )
    predictor = _predictor(options, state, os.urandom(16))
    recordings = Recordings(paths, predictor.extractor, options.reading, keep_block=False)
    # A few are read sooner than a worker starts.
    items = read_all(recordings, range(len(paths)), options.num_workers if len(paths) > FEW else 0)
    predicted = predictor.predict(tqdm(items, total=len(paths), unit=" recordings", disable=None, leave=False))
    rejected: list[Item] = []
    if options.format == "table":
        print(f"{NOTICE}\n")
        for item, rows in predicted:
            rejected += [item] if item.error else []
            for row in rows:
                print(as_text(row, predictor.calibration, len(rows)) + "\n")
    else:
        rows = _readable(predicted, rejected)
        if options.format == "csv":
            write_csv(rows, predictor.classes, sys.stdout)
        else:
            write_jsonl(rows, sys.stdout)
    for item in rejected:
        print(f"rejected: {item.path}: {item.error}", file=sys.stderr)
    if len(rejected) == len(paths):
        raise ValueError("no recording could be read.")


def _readable(predicted, rejected: list[Item]) -> Iterator[dict]:
    for item, rows in predicted:
        rejected += [item] if item.error else []
        yield from rows


# ------------------------------------------------------------------------------------------------------------- folder


def _to_folder(options: Options, state: PartialState):
    plan, main = Plan(options.output), state.is_main_process
    with contextlib.ExitStack() as stack:
        predictor = _predictor(options, state)
        settings = predictor.settings(options.reading) | {"pictures": options.pictures}

        def prepare():
            lock = stack.enter_context(FolderLock(options.output, "predict.py"))
            plan.prepare(list_recordings(options.sources, options.output), settings)
            return lock

        lock = _first_alone(prepare, state)
        plan.forget()
        predictor.key = plan.key
        todo = [shard for shard in plan.shards if not plan.is_done(shard)]
        if main and len(todo) < len(plan.shards):
            done = sum(shard.stop - shard.start for shard in plan.shards) - sum(s.stop - s.start for s in todo)
            print(f"{options.output}: {done:,} recordings were done before.")
        started = time.monotonic()
        share = todo[state.process_index :: state.num_processes]
        _predict_shards(plan, share, predictor, options, settings, lock if main else None, state)
        state.wait_for_everyone()
        if main:
            _finish(plan, options, predictor, todo, time.monotonic() - started)


def _first_alone(prepare, state: PartialState):
    """Lets the main process prepare while the others wait; an error of it is one of all."""
    result, failure = None, [None]
    if state.is_main_process:
        try:
            result = prepare()
        except (ValueError, OSError) as error:
            failure = [str(error)]
    if state.num_processes > 1:
        broadcast_object_list(failure)
    if failure[0] is not None:
        raise ValueError(failure[0])
    return result


def _predict_shards(plan, shards: list[Shard], predictor, options, settings, lock, state):
    recordings = Recordings(plan.paths, predictor.extractor, options.reading, keep_block=bool(options.pictures))
    items = read_all(recordings, _Order(shards), options.num_workers)
    where = f" (process 1 of {state.num_processes})" if state.num_processes > 1 else ""
    total = sum(shard.stop - shard.start for shard in shards)
    with tqdm(total=total, unit=" recordings", desc=f"predict{where}", disable=not state.is_main_process) as bar:
        for shard in shards:
            rows, rejected, first = [], [], Counter()
            for item, item_rows in predictor.predict(islice(items, shard.stop - shard.start)):
                if item.error is not None:
                    rejected.append((item.path, item.error))
                elif options.pictures:
                    _draw(item, item_rows, predictor, options)
                first.update(row["findings"][0] for row in item_rows if row.get("findings"))
                rows += item_rows
                bar.update()
            if lock is not None:
                lock.check()
            if rows:
                write_atomically(plan.data_file(shard), partial(write_parquet, rows, settings, predictor.dim))
            plan.finish(shard, rejected, len(rows), first)


class _Order:
    """The numbers of the recordings of shards, without a list of them."""

    def __init__(self, shards: list[Shard]):
        self.shards = shards

    def __iter__(self) -> Iterator[int]:
        for shard in self.shards:
            yield from range(shard.start, shard.stop)

    def __len__(self) -> int:
        return sum(shard.stop - shard.start for shard in self.shards)


def _draw(item: Item, rows: list[dict], predictor: Predictor, options: Options):
    """Draws a recording's first window, with its findings, and names the file in its rows."""
    from melp.predict.pictures import draw_prediction

    folder = options.output / "pictures"
    folder.mkdir(exist_ok=True)
    name = f"{picture_name(item.path, name_hash(item.path))}.{options.pictures}"
    identifiers = item.identifiers if options.keep_identifiers else {}
    sheet = draw_prediction(item.block, rows[0], predictor.calibration, identifiers)
    write_atomically(folder / name, lambda path: sheet.savefig(path, format=options.pictures))
    item.block = None
    for row in rows:
        row["picture"] = f"pictures/{name}"


def _finish(plan: Plan, options: Options, predictor: Predictor, done: list[Shard], seconds: float):
    plan.write_rejected()
    if options.format in ("csv", "jsonl"):
        write_atomically(plan.folder / f"predictions.{options.format}", partial(_convert, plan, options, predictor))
    print(f"\n{NOTICE}\n")
    recordings, rows, rejected, first, reasons = 0, 0, 0, Counter(), Counter()
    for summary in plan.summaries():
        recordings += summary["recordings"]
        rows += summary["rows"]
        rejected += len(summary["rejected"])
        first.update(summary["first"])
        reasons.update(_kind(reason) for _, reason in summary["rejected"])
    now = sum(shard.stop - shard.start for shard in done)
    print(f"{options.output}: {recordings - rejected:,} recordings, {rows:,} rows; ", end="")
    print(f"{rejected:,} rejected (rejected.csv)")
    if now:
        print(f"This run: {now:,} recordings in {timedelta(seconds=round(seconds))}, {now / seconds:.1f} a second")
    if first:
        print(f"Most {'similar' if predictor.calibration else 'probable'} finding:")
        for name, count in first.most_common(10):
            print(f"    {count:9,}  {name}")
        if predictor.calibration:
            print(f"    ({predictor.calibration})")
    for reason, count in reasons.most_common(5):
        print(f"    {count:9,}  rejected: {reason}")
    if options.embeddings:
        print(f'Next:\n    python -m melp.search {options.output} "atrial fibrillation"')
    else:
        print(f"Next:\n    python -c \"import pandas; print(pandas.read_parquet('{options.output}/data'))\"")


def _kind(reason: str) -> str:
    """A reason without its numbers, quotations and advice, by which rejections are counted."""
    return re.sub(r"b?'[^']*'|\d[\d.,]*", "...", reason.partition(";")[0])


def _convert(plan: Plan, options: Options, predictor: Predictor, path: Path):
    with open(path, "w", newline="", encoding="utf-8") as file:
        if options.format == "csv":
            write_csv(read_rows(plan.folder), predictor.classes, file)
        else:
            write_jsonl(read_rows(plan.folder), file)
