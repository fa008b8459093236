"""Writes files whole or not at all, with the modes that the umask gives, and locks a folder for one writer."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import shutil
import socket
import stat
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

LOCK = ".melp-lock"
HEARTBEAT = 5.0  # s between signs of life of a lock's holder
SILENCE = 60.0  # s without one after which a holder that cannot be asked counts as gone


# --------------------------------------------------------------------------------------------------------- atomically


def write_atomically(path: Path, content: str | bytes | Callable[[Path], object], private: bool = False):
    """Writes a file under another name first: a kill leaves the old file or the new one.

    Args:
        content: text (UTF-8), bytes, or a function that writes to the path it is given.
        private: for its owner alone, from the first byte on.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        if private:
            partial.unlink(missing_ok=True)  # of a killed run, whatever its mode
            partial.touch(mode=0o600)
        if callable(content):
            content(partial)
        else:
            partial.write_bytes(content if isinstance(content, bytes) else content.encode())
        if not private:
            give_umask_modes(partial)
        flush(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[dict]):
    """Writes rows that have exactly these columns, under a header, as `write_atomically` does."""
    text = io.StringIO()
    table = csv.DictWriter(text, columns)
    table.writeheader()
    table.writerows(rows)
    write_atomically(path, text.getvalue())


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Gives an empty folder to fill; what it holds at the end takes the place of `folder`, all at once.

    An exception leaves the old folder as it was. A folder cannot be exchanged in one step everywhere: a kill between
    the two renames leaves the old one as `.NAME-before`, which `recover_folder` puts back.
    """
    folder = Path(folder)
    partial, before = folder.with_name(f".{folder.name}.partial"), _before(folder)
    recover_folder(folder)
    partial.mkdir(parents=True)
    try:
        yield partial
        give_umask_modes(partial)
        flush(partial)
        if folder.exists():
            os.replace(folder, before)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(before, ignore_errors=True)


def recover_folder(folder: Path):
    """Clears what a kill inside `replacing_folder` left, and puts the old folder back where no new one came."""
    folder = Path(folder)
    before = _before(folder)
    shutil.rmtree(folder.with_name(f".{folder.name}.partial"), ignore_errors=True)
    if before.exists() and not folder.exists():
        os.replace(before, folder)
    shutil.rmtree(before, ignore_errors=True)


def _before(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}-before")


def give_umask_modes(path: Path):
    """Sets the modes that the umask gives to new files and folders, of all in `path`: safetensors writes mode 600."""
    umask = _umask()
    for entry in [path, *(path.rglob("*") if path.is_dir() else ())]:
        if not entry.is_symlink():
            mode = (0o777 if entry.is_dir() else 0o666) & ~umask
            if stat.S_IMODE(entry.stat().st_mode) != mode:
                entry.chmod(mode)


def _umask() -> int:
    with contextlib.suppress(OSError, IndexError, StopIteration), open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("Umask:")).split()[1], 8)
    umask = os.umask(0o077)  # elsewhere it can only be read by setting it
    os.umask(umask)
    return umask


def flush(path: Path):
    """Flushes a file, or all files of a folder, to the disk: a name must not outlive its content in a power cut."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())


@contextlib.contextmanager
def explaining_full_disk(folder: Path, what_to_do: str = "make room and start the same command again"):
    """Turns the error of a full disk, whichever library met it, into one ValueError.

    Raises:
        ValueError: naming the folder and what to do.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise ValueError(f"the disk of {folder} is full: {what_to_do}. What was complete there is kept.") from error


def is_disk_full(error: BaseException | None) -> bool:
    """Returns whether an exception, or one that it came from, is that of a full disk or an exhausted quota."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = str(error)  # safetensors, Arrow and torch report the system's message, not its number
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(
            words in text for words in ("No space left on device", "os error 28", "Disk quota exceeded")
        ):
            return True
        # torch.save keeps the reason to itself, and says in three ways that not all was written.
        if any(words in text for words in ("PytorchStreamWriter failed writing", "iostream error", "unexpected pos")):
            return True
        error = error.__cause__ or error.__context__
    return False


def sha256(*paths: Path) -> str:
    """Returns the SHA-256 of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> dict:
    """Reads a JSON object; light, where `configuration_melp.read_json`, which travels with a model, is not.

    Raises:
        ValueError: naming the file, where it is damaged or no regular file.
    """
    try:
        if not path.is_file():  # a FIFO would never end
            raise ValueError("it is no regular file")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}; restore it, or make the folder again.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object; restore it, or make the folder again.")
    return values


def refuse_file(folder: Path):
    """Raises ValueError where a folder to write into is a file."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name another --output.")


# --------------------------------------------------------------------------------------------------------------- lock


class FolderLock:
    """Keeps a folder for one writer, among processes of this machine and of others that share its file system.

    A file that only one process can create names the holder, who touches it every few seconds. A holder on this
    machine is asked whether it lives; one elsewhere is watched until it gives a sign of life, or none for a minute:
    no clock of another machine is trusted, and no lock service needed, which network file systems often lack.

    Used as a context manager.

    Raises:
        ValueError: on entering, naming the holder, where there is one.
    """

    def __init__(self, folder: Path, purpose: str = ""):
        self.folder, self.path = Path(folder), Path(folder) / LOCK
        self.purpose = purpose or " ".join(Path(word).name if i == 0 else word for i, word in enumerate(sys.argv[:3]))
        self.token = uuid.uuid4().hex
        self._stop, self._lost = threading.Event(), False

    def __enter__(self) -> "FolderLock":
        self.folder.mkdir(parents=True, exist_ok=True)
        while not self._create():
            self._await_absence()
            self._remove_stale()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        if _read(self.path).get("token") == self.token:
            self.path.unlink(missing_ok=True)

    def check(self):
        """Raises ValueError where another process took the folder, since this one was silent for too long."""
        if self._lost:
            raise ValueError(f"{self.folder} was taken over by {_describe(_read(self.path))}: this process stops.")

    def _create(self) -> bool:
        # Complete under a name of its own, then linked: nobody reads half of it, and only one link succeeds.
        own = self.path.with_name(f"{LOCK}-{self.token}")
        own.write_text(json.dumps({"token": self.token, "purpose": self.purpose, **_this_process()}))
        try:
            os.link(own, self.path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            try:
                with open(self.path, "x") as file:
                    file.write(own.read_text())
            except FileExistsError:
                return False
        finally:
            own.unlink(missing_ok=True)
        return True

    def _await_absence(self):
        """Returns when the holder is known to be gone; raises ValueError when it lives."""
        holder, first = _read(self.path), _modified(self.path)
        self._judged = holder.get("token")
        alive = _is_alive(holder)
        until = time.monotonic() + SILENCE
        while alive is None and first is not None:
            if time.monotonic() > until:
                return
            time.sleep(0.5)
            now = _modified(self.path)
            if now != first:
                alive = now is not None and _read(self.path).get("token") == self._judged
                break
        if alive:
            raise ValueError(
                f"{self.folder} is being written by {_describe(holder)}: wait for it, or choose another output."
            )

    def _remove_stale(self):
        """Removes the lock that was judged, and no other that came in its place: one process at a time may look."""
        mutex = self.path.with_name(f"{LOCK}-takeover")
        until = time.monotonic() + SILENCE
        while True:
            try:
                mutex.touch(exist_ok=False)
                break
            except FileExistsError:
                time.sleep(0.02)
                if time.monotonic() > until:  # its maker was killed within the few lines below
                    mutex.unlink(missing_ok=True)
        try:
            if _read(self.path).get("token") == self._judged:
                self.path.unlink(missing_ok=True)
        finally:
            mutex.unlink(missing_ok=True)

    def _beat(self):
        while not self._stop.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                if _read(self.path).get("token", self.token) != self.token:
                    self._lost = True
                    return
                os.utime(self.path)


def _this_process() -> dict:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _start_of(os.getpid()),
        "machine": _machine(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _machine() -> list[str | None]:
    """Tells apart machines of one name, and containers of one machine, whose process numbers are not ours."""
    with contextlib.suppress(OSError):
        return [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return [f"{uuid.getnode():x}", None]


def _start_of(pid: int) -> str | None:
    """Returns when a process started, in ticks: process numbers are used again."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return None


def _is_alive(holder: dict) -> bool | None:
    """Tells whether a lock's holder lives; None where that cannot be asked, as it runs elsewhere or did not say."""
    pid = holder.get("pid")
    if holder.get("machine") != _machine() or not isinstance(pid, int):
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return _start_of(pid) == holder.get("started")


def _describe(holder: dict) -> str:
    if not holder.get("pid"):
        return "another process"
    purpose = f" ({holder['purpose']})" if holder.get("purpose") else ""
    return f"process {holder['pid']} on {holder.get('host')}{purpose}, since {holder.get('since')}"


def _read(path: Path) -> dict:
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_text())
        return content if isinstance(content, dict) else {}
    return {}


def _modified(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns
    return None
