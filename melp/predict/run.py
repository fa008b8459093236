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
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from tqdm import tqdm

from melp.files import FolderLock, explaining_full_disk, write_atomically
from melp.notice import NOTICE
from melp.predict.options import Options
from melp.predict.output import as_text, read_rows, write_csv, write_jsonl, write_parquet
from melp.predict.paths import absolute, list_recordings
from melp.predict.plan import Plan, Shard, Tally
from melp.predict.predictor import Predictor
from melp.predict.reading import PAGES, Item, Recordings, read_all
from melp.predict.reasons import hide_quotations

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
    recordings = _recordings(paths, predictor, options)
    # A few are read sooner than a worker starts.
    items = read_all(recordings, range(len(paths)), options.num_workers if len(paths) > FEW else 0)
    predicted = predictor.predict(tqdm(items, total=len(paths), unit=" recordings", disable=None, leave=False))
    tally = Tally()
    rows = _counted(predicted, tally)
    if options.format == "table":
        print(f"{NOTICE}\n")
        for item, row in rows:
            print(as_text(row, predictor.calibration, item.windows) + "\n")
    elif options.format == "csv":
        write_csv((row for _, row in rows), predictor.classes, sys.stdout)
    else:
        write_jsonl((row for _, row in rows), sys.stdout)
    for path, reason in tally.rejected:
        print(f"rejected: {path}: {reason}", file=sys.stderr)
    if tally.others:
        print(_others(tally), file=sys.stderr)
    if not tally.rows:
        raise ValueError("no recording could be read.")


def _counted(predicted, tally: Tally) -> Iterator[tuple[Item, dict]]:
    for item, rows in predicted:
        tally.add(item, rows)
        for row in rows:
            yield item, row


def _others(tally: Tally) -> str:
    kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in tally.others.most_common(5))
    return f"{tally.others.total():,} files that are no ECG were left out ({kinds})."


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
    recordings = _recordings(plan.paths, predictor, options)
    items = read_all(recordings, _Order(shards), options.num_workers)
    where = f" (process 1 of {state.num_processes})" if state.num_processes > 1 else ""
    total = sum(shard.stop - shard.start for shard in shards)
    sheets = None
    if options.pictures:
        from melp.predict.pictures import Sheets

        sheets = Sheets(plan.folder / "pictures", options.pictures, predictor.calibration, options.keep_identifiers)
    with tqdm(total=total, unit=" recordings", desc=f"predict{where}", disable=not state.is_main_process) as bar:
        for shard in shards:
            tally = Tally()
            predicted = predictor.predict(_take(items, shard.stop - shard.start))
            rows = _rows(_unquoted(predicted, options), tally, sheets, bar, lock)
            write_atomically(plan.data_file(shard), partial(write_parquet, rows, settings, predictor.dim))
            if not tally.rows:
                plan.data_file(shard).unlink()
            plan.finish(shard, tally)


def _recordings(paths, predictor: Predictor, options: Options) -> Recordings:
    named = frozenset(path for path in map(absolute, options.sources) if os.path.isfile(path))
    return Recordings(paths, predictor.extractor, options.reading, bool(options.pictures), named)


def _take(items: Iterator[Item], count: int) -> Iterator[Item]:
    """Yields the items of `count` recordings."""
    while count:
        item = next(items)
        yield item
        count -= item.is_last


def _rows(predicted, tally: Tally, sheets, bar: tqdm, lock: FolderLock | None) -> Iterator[dict]:
    """Yields the rows of a shard, with their pictures drawn; a long recording is never in memory whole."""
    for item, rows in predicted:
        if sheets is not None:
            tally.undrawn += sheets.add(item, rows)
        tally.add(item, rows)
        bar.update(item.is_last)
        yield from rows
    if lock is not None:
        lock.check()


def _unquoted(predicted, options: Options) -> Iterator[tuple[Item, list[dict]]]:
    """Keeps out of an output what a reason quotes from a file: it may be a patient's name."""
    for item, rows in predicted:
        if item.error is not None and not options.keep_identifiers:
            item.error = hide_quotations(item.error)
        yield item, rows


class _Order:
    """The numbers of the recordings of shards, without a list of them."""

    def __init__(self, shards: list[Shard]):
        self.shards = shards

    def __iter__(self) -> Iterator[int]:
        for shard in self.shards:
            yield from range(shard.start, shard.stop)

    def __len__(self) -> int:
        return sum(shard.stop - shard.start for shard in self.shards)


def _finish(plan: Plan, options: Options, predictor: Predictor, done: list[Shard], seconds: float):
    plan.write_rejected()
    for form in ("csv", "jsonl"):
        table = plan.folder / f"predictions.{form}"
        if options.format == form or table.exists():  # one of an earlier run lacks what came since
            write_atomically(table, partial(_convert, plan, form, predictor))
    print(f"\n{NOTICE}\n")
    total, reasons = Tally(), Counter()
    for tally in plan.tallies():
        reasons.update(_kind(reason) for _, reason in tally.rejected)
        tally.rejected = []  # counted above; of millions of files there may be many
        total.merge(tally)
    read = total.recordings - total.unread - total.others.total()
    print(f"{options.output}: {read:,} recordings, {total.rows:,} rows; {total.unread:,} rejected (rejected.csv)")
    if total.others:
        print(_others(total))
    if total.undrawn:
        print(f"Pictures are of the first {PAGES} windows of a recording: {total.undrawn:,} later ones have none.")
    now = sum(shard.stop - shard.start for shard in done)
    if now:
        print(f"This run: {now:,} recordings in {timedelta(seconds=round(seconds))}, {now / seconds:.1f} a second")
    if total.first:
        print(f"Most {'similar' if predictor.calibration else 'probable'} finding:")
        for name, count in total.first.most_common(10):
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
    """Returns a reason without its numbers, quotations and advice, by which rejections are counted."""
    return re.sub(r"b?'[^']*'|\d[\d.,]*", "...", reason.partition(";")[0])


def _convert(plan: Plan, form: str, predictor: Predictor, path: Path):
    with open(path, "w", newline="", encoding="utf-8") as file:
        if form == "csv":
            write_csv(read_rows(plan.folder), predictor.classes, file)
        else:
            write_jsonl(read_rows(plan.folder), file)
