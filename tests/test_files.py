"""Writing: whole or not at all, modes, the full disk's message, and the lock of a folder."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import REPO

from melp import files
from melp.files import (
    LOCK,
    FolderLock,
    explaining_full_disk,
    give_umask_modes,
    recover_folder,
    replacing_folder,
    write_atomically,
    write_csv,
)


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_an_exception_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(partial):
        partial.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_atomically(path, fail)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]
    write_atomically(path, b"new")
    assert path.read_text() == "new"


def test_rows_that_do_not_fit_leave_the_old_csv(tmp_path):
    path = tmp_path / "rows.csv"
    write_csv(path, ["record", "reason"], [{"record": "a", "reason": 'short, "flat"'}])
    with pytest.raises(ValueError, match="other"):
        write_csv(path, ["record", "reason"], [{"record": "b", "reason": "none", "other": 1}])
    assert path.read_bytes() == b'record,reason\r\na,"short, ""flat"""\r\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.csv"]


def test_a_folder_is_replaced_whole_or_kept(tmp_path):
    folder = tmp_path / "folder"
    with replacing_folder(folder) as new:
        (new / "a").write_text("1")
    with pytest.raises(RuntimeError), replacing_folder(folder) as new:
        (new / "b").write_text("2")
        raise RuntimeError
    assert os.listdir(folder) == ["a"] and os.listdir(tmp_path) == ["folder"]
    with replacing_folder(folder) as new:
        (new / "b").write_text("2")
    assert os.listdir(folder) == ["b"] and os.listdir(tmp_path) == ["folder"]


def test_a_kill_between_the_renames_is_recovered(tmp_path):
    (tmp_path / ".folder-before").mkdir()
    (tmp_path / ".folder-before" / "a").write_text("1")
    (tmp_path / ".folder.partial").mkdir()
    recover_folder(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"] and (tmp_path / "folder" / "a").read_text() == "1"


def test_modes_are_those_of_the_umask(tmp_path, umask):
    (tmp_path / "sub").mkdir(mode=0o700)
    file = tmp_path / "sub" / "weights"
    file.touch(mode=0o600)
    give_umask_modes(tmp_path / "sub")
    assert file.stat().st_mode & 0o777 == 0o640 and (tmp_path / "sub").stat().st_mode & 0o777 == 0o750
    write_atomically(tmp_path / "text", lambda path: path.touch(mode=0o600))
    assert (tmp_path / "text").stat().st_mode & 0o777 == 0o640


def test_what_is_private_is_so_from_the_first_byte(tmp_path, umask):
    modes = []
    (tmp_path / ".key.partial").touch(mode=0o644)  # of a killed run
    write_atomically(tmp_path / "key", lambda path: modes.append(path.stat().st_mode), private=True)
    assert [mode & 0o777 for mode in [*modes, (tmp_path / "key").stat().st_mode]] == [0o600, 0o600]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:858] PytorchStreamWriter failed writing file data/0"),
    ],
)
def test_a_full_disk_is_one_message(tmp_path, error):
    with pytest.raises(ValueError, match=f"the disk of {tmp_path} is full: make room"):
        with explaining_full_disk(tmp_path):
            try:
                raise error
            except type(error) as cause:
                raise RuntimeError("saving failed") from cause
    with pytest.raises(KeyError), explaining_full_disk(tmp_path):
        raise KeyError("another error stays what it is")


# --------------------------------------------------------------------------------------------------------------- lock

HOLDER = """
import sys, time
from melp.files import FolderLock
with FolderLock(sys.argv[1], "a training"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=REPO
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_says_who_holds_it(tmp_path, holder):
    with pytest.raises(ValueError, match=rf"being written by process {holder.pid} on .* \(a training\), since"):
        FolderLock(tmp_path).__enter__()


def test_a_killed_holder_is_gone_at_once(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    started = time.monotonic()
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert time.monotonic() - started < 5 and not os.listdir(tmp_path)


@pytest.mark.slow
def test_another_machine_is_watched_for_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SILENCE", 1.5)
    monkeypatch.setattr(files, "HEARTBEAT", 0.3)
    with FolderLock(tmp_path):
        elsewhere = json.loads((tmp_path / LOCK).read_text()) | {"machine": ["other", None], "host": "node7"}
        (tmp_path / LOCK).write_text(json.dumps(elsewhere))
        with pytest.raises(ValueError, match="on node7"):
            FolderLock(tmp_path).__enter__()
    (tmp_path / LOCK).write_text(json.dumps(elsewhere))  # killed: nobody touches it
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["host"] != "node7"


def test_a_holder_learns_that_its_folder_was_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "HEARTBEAT", 0.05)
    with FolderLock(tmp_path) as lock:
        lock.check()
        (tmp_path / LOCK).write_text(json.dumps({"token": "other", "pid": 1, "host": "node7", "since": "now"}))
        time.sleep(0.5)
        with pytest.raises(ValueError, match="taken over by process 1 on node7"):
            lock.check()
    assert (tmp_path / LOCK).exists()  # it is the other's


def test_of_many_that_start_at_once_over_a_dead_ones_lock_one_gets_it(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps({"token": "dead", "pid": 2**22 + 1, "machine": files._machine()}))

    def take(_):
        lock = FolderLock(tmp_path)
        try:
            lock.__enter__()
        except ValueError:
            return None
        return lock

    with ThreadPoolExecutor(8) as pool:
        locks = [lock for lock in pool.map(take, range(8)) if lock]
    assert len(locks) == 1
    locks[0].__exit__()
    assert not os.listdir(tmp_path)
