"""Reads uploaded files in a process of its own, which may take so much time and memory and which nobody hears.

What a hostile or damaged file does to a parser ends with the process: its time, its memory, and whatever a library
would print or log of the file's content. A process reads for one request only; the next ones wait ready.
"""

import contextlib
import logging
import multiprocessing
import os
import queue
import sys
import threading
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from melp.app.limits import MB, Limits, Refusal, without_quotations
from melp.predict.paths import list_recordings
from melp.predict.reading import Item, Reading, Recordings

READY = 3  # processes that wait for a request: two questions and a batch are answered at a time
MAX_RATIO = 200  # of a zip file's content and itself; ECGs as text shrink 30 times at most
TOO_SLOW = "it took longer than {:g} s to read; take a shorter part of it"
TOO_LARGE = "it is damaged, or larger than the memory that reading one file may take"


# ---------------------------------------------------------------------------------------------- in the reading process


def unpack(folder: str, limits: Limits):
    """Unpacks the zip files of a folder beside themselves, and removes them.

    Raises:
        Refusal: where one holds too much, is encrypted or damaged.
    """
    left, files = limits.unpacked_mb * MB, 0
    for path in sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() == ".zip"):
        try:
            with zipfile.ZipFile(path) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
                if members and all(member.filename.endswith(".npy") for member in members):
                    continue  # an .npz file by another name
                files += len(members)
                if files > limits.files:
                    raise Refusal(f"{path.name} holds {len(members):,} files; at most {limits.files:,} are taken.")
                if any(member.flag_bits & 1 for member in members):
                    raise Refusal(f"{path.name} is encrypted: unpack it first.")
                stated = sum(member.file_size for member in members)
                if stated > left or stated > MAX_RATIO * max(path.stat().st_size, 2**16):
                    raise Refusal(f"{path.name} holds more than is taken: {limits.unpacked_mb:g} MB unpacked.")
                for number, member in enumerate(members):
                    left -= _extract(archive, member, path.with_suffix("") / _inside(member, number), left)
        except Refusal:
            raise
        except FileExistsError:
            raise Refusal(f"{path.name} holds two files of one name, of which one must be renamed.") from None
        except Exception as error:  # of zipfile and zlib, whatever the file made of them
            raise Refusal(f"{path.name} is damaged, or no zip file ({type(error).__name__}).") from None
        path.unlink()


def _inside(member: zipfile.ZipInfo, number: int) -> Path:
    """Returns a member's place: what of its name leads out of the folder is dropped."""
    parts = [part for part in Path(member.filename.replace("\\", "/")).parts if part not in ("/", "..", ".")]
    return Path(*parts) if parts else Path(str(number))


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, most: float) -> int:
    written = 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, open(target, "xb") as file:
        while piece := source.read(2**18):
            written += len(piece)
            if written > most:  # its header lied
                raise Refusal("the zip file holds more than is taken.")
            file.write(piece)
    return written


def _list(folder: str, limits: Limits) -> list[str]:
    unpack(folder, limits)
    try:
        listed = list_recordings([folder])
    except ValueError:
        raise Refusal("there is no ECG file in what was uploaded.") from None
    if len(listed) > limits.files:
        raise Refusal(f"{len(listed):,} recordings are too many at once; at most {limits.files:,} are taken.")
    return listed.to_pylist()


def _read(path: str, extractor, reading: Reading) -> Item:
    return Recordings(pa.chunked_array([pa.array([path])]), extractor, reading, keep_block=True)[0]


def _silence(memory: float):
    """Lets nothing out but the answer, and no more memory in than is allowed."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    if sys.platform.startswith("linux"):
        import resource

        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + int(memory),) * 2)


def _serve(connection, memory: float):
    import torch

    torch.set_num_threads(1)
    _silence(memory)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            name, arguments = connection.recv()
            try:
                answer = {"list": _list, "read": _read}[name](*arguments)
            except Refusal as error:
                answer = error
            except MemoryError:
                answer = Refusal(TOO_LARGE)
            connection.send(answer)


# ------------------------------------------------------------------------------------------------------ who asks it


class Reader:
    """Keeps reading processes ready, each forked from one that has imported all they need.

    Attributes:
        extractor: of the model, which is loaded meanwhile; it has to be set before anything is read.
    """

    def __init__(self, limits: Limits):
        self.extractor, self.limits = None, limits
        kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._context = multiprocessing.get_context(kind)
        self._starting, self._ready = threading.Lock(), queue.SimpleQueue()
        self._keeper = ThreadPoolExecutor(1, "melp-reader")  # starts and ends processes while nobody waits for it

    def start(self):
        """Starts what the processes are forked from, which imports while the model is loaded, and the first ones."""
        if self._context.get_start_method() == "forkserver":
            self._start_server()
        self._keeper.submit(self._fill)

    def close(self):
        """Ends all processes that wait."""
        self._keeper.shutdown(cancel_futures=True)
        while not self._ready.empty():
            self._ready.get().stop()

    def _start_server(self):
        from multiprocessing import forkserver

        self._context.set_forkserver_preload(["melp.app.warm"])
        before = os.environ.get("PYTHONPATH")
        # It is a new Python, which would not find this package where only the script's own folder leads to it.
        root = str(Path(__file__).resolve().parent.parent.parent)
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *([before] if before else [])])
        try:
            forkserver.ensure_running()
        finally:
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before

    def _fill(self):
        while self._ready.qsize() < READY:
            self._ready.put(_Worker(self))

    def take(self) -> "_Worker":
        """Returns a process that nobody has asked anything."""
        with contextlib.suppress(queue.Empty):
            while not (worker := self._ready.get_nowait()).is_alive:
                worker.stop()  # ended by the system, as where memory is short
            return worker
        return _Worker(self)

    def end(self, worker: "_Worker"):
        """Ends a process and starts the next one, after the answer: each takes some 30 ms."""
        self._keeper.submit(worker.stop)
        self._keeper.submit(self._fill)

    @contextlib.contextmanager
    def process(self) -> Iterator["_Process"]:
        """Yields a process that lists and reads, one thing after the other."""
        process = _Process(self)
        try:
            yield process
        finally:
            process.stop()


class _Worker:
    """A process and the way to it."""

    def __init__(self, reader: Reader):
        with reader._starting:
            self.connection, other = reader._context.Pipe()
            memory = reader.limits.memory_mb * MB
            self._process = reader._context.Process(target=_serve, args=(other, memory), daemon=True)
            self._process.start()
            other.close()

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def stop(self):
        self.connection.close()
        self._process.kill()
        self._process.join()
        self._process.close()


class _Process:
    """Reads the files of one request: in one process, and in another in its place where a file has ended it."""

    def __init__(self, reader: Reader):
        self.reader, self._worker = reader, None

    def stop(self):
        if self._worker is not None:
            self.reader.end(self._worker)
            self._worker = None

    def _ask(self, name: str, *arguments):
        """Returns the answer; None where the process ended. Raises TimeoutError where it did not answer in time."""
        self._worker = self._worker or self.reader.take()
        try:
            self._worker.connection.send((name, arguments))
            if not self._worker.connection.poll(self.reader.limits.seconds):
                self.stop()
                raise TimeoutError
            return self._worker.connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.stop()
            return None

    def list(self, folder: Path) -> list[str]:
        """Returns the recordings of a folder, after unpacking its zip files.

        Raises:
            Refusal: where there is none, or too much.
        """
        try:
            answer = self._ask("list", str(folder), self.reader.limits)
        except TimeoutError:
            raise Refusal(f"unpacking took longer than {self.reader.limits.seconds:g} s.") from None
        if answer is None:
            raise Refusal("the upload cannot be unpacked: " + TOO_LARGE)
        if isinstance(answer, Refusal):
            raise answer
        return answer

    def read(self, path: str, reading: Reading) -> Item:
        """Returns a recording, or an item with the reason why it cannot be read, which quotes nothing."""
        try:
            answer = self._ask("read", path, self.reader.extractor, reading)
        except TimeoutError:
            return Item(path, error=TOO_SLOW.format(self.reader.limits.seconds))
        if not isinstance(answer, Item):
            return Item(path, error=TOO_LARGE)
        if answer.error is not None:
            answer.error = without_quotations(answer.error)
        elif not np.isfinite(answer.values).all():
            return Item(path, error="its samples are not finite")
        return answer
