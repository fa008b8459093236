"""The processes of a run: one of them writes, and all end when one is lost."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env

from melp.files import FolderLock, explaining_full_disk
from melp.training.recipe import Recipe

BEAT = 2.0  # s between a process's signs of life
SILENCE = 30.0  # s without one after which it counts as lost
WHEN_FULL = "make room, and the same command with --resume auto continues"
RESUME = "start all processes again with --resume auto"


def process_state() -> PartialState:
    """Returns which of the run's processes this is, and on which device; the first call connects them."""
    # Only Accelerator reads this by itself: without it, processes on a CPU would know nothing of each other.
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


class _NoLock(contextlib.nullcontext):
    """The lock of a process that does not write."""

    def check(self):
        pass


@contextlib.contextmanager
def one_writer(recipe: Recipe) -> Iterator[FolderLock | _NoLock]:
    """Keeps the run folder for this run, whose main process writes; a full disk, or a lost process, ends the run.

    Raises:
        ValueError: naming the process that writes there now, the full disk, or what became of the other processes.
    """
    state = process_state()
    output = Path(recipe.output)
    with contextlib.ExitStack() as stack:
        stack.enter_context(explaining_full_disk(output, WHEN_FULL))
        lock = FolderLock(output) if state.is_main_process else _NoLock()
        try:
            stack.enter_context(lock)
        except OSError as error:
            raise ValueError(f"{output} cannot be written ({error}): choose another --output.") from error
        if state.num_processes > 1:
            stack.enter_context(_explaining_lost_process())
            stack.enter_context(_Watch(state))
        yield lock


@contextlib.contextmanager
def _explaining_lost_process() -> Iterator[None]:
    """Turns the error of a connection that another process's end has closed into a message."""
    try:
        yield
    except RuntimeError as error:
        if not any(library in str(error).lower() for library in ("gloo", "nccl", "tcpstore")):
            raise
        reason = str(error).splitlines()[0]
        raise ValueError(f"another process of this run has ended ({reason}): {RESUME}.") from error


class _Watch:
    """Ends this process when another gives no sign of life for half a minute.

    A process that is killed closes its connections, which the others notice at once. A machine that is cut off does
    not: they would wait for it until the libraries' time limit, which has to be long, since some steps take long.
    Signs of life go through a store of the main process; each process judges the others by its own clock.
    """

    def __init__(self, state: PartialState):
        self.state, self.rank, self.world = state, state.process_index, state.num_processes
        address, limit = os.environ.get("MASTER_ADDR", "127.0.0.1"), timedelta(seconds=SILENCE)
        store = dist.TCPStore(address, 0, None, True, limit, wait_for_workers=False) if self.rank == 0 else None
        (port, *_) = gather_object([store.port if store else None])
        self.store = store or dist.TCPStore(address, port, None, False, limit)
        self.seen = {rank: (b"", time.monotonic()) for rank in range(self.world) if rank != self.rank}
        self.stopped = threading.Event()

    def __enter__(self) -> "_Watch":
        self.store.set(str(self.rank), "0")
        self.state.wait_for_everyone()
        for work in (self._beat, self._judge):
            threading.Thread(target=work, daemon=True).start()
        return self

    def __exit__(self, kind, *_):
        self.stopped.set()
        if kind is None:
            self.state.wait_for_everyone()  # the store ends with the main process

    def _beat(self):
        """Exchanges signs of life; where the main process cannot be reached this blocks or fails, and `seen` ages."""
        count = 0
        with contextlib.suppress(RuntimeError):
            while not self.stopped.wait(BEAT):
                count += 1
                self.store.set(str(self.rank), str(count))
                for rank, (sign, _) in self.seen.items():
                    if (now := self.store.get(str(rank))) != sign:
                        self.seen[rank] = now, time.monotonic()

    def _judge(self):
        while not self.stopped.wait(BEAT):
            silent = [str(rank) for rank, (_, when) in self.seen.items() if time.monotonic() - when > SILENCE]
            if silent and not self.stopped.is_set():
                print(
                    f"train.py: process {', '.join(silent)} of {self.world} has given process {self.rank} no sign of "
                    f"life for {SILENCE:.0f} s (killed, or its machine is cut off): {RESUME}.",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)  # the main thread waits for the lost process, where no exception reaches it
