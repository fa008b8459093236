"""Reading processes: one for each request, ready before it comes, and ended by a file that takes too much."""

import os
import signal
import time
import zipfile
from contextlib import contextmanager

import pytest

from melp.app.limits import Limits, Refusal
from melp.app.reader import READY, Reader, unpack
from melp.predict.reading import Reading
from processing_melp import MelpFeatureExtractor


@contextmanager
def started(**limits):
    reader = Reader(Limits(**limits))
    reader.extractor = MelpFeatureExtractor()
    reader.start()
    try:
        yield reader
    finally:
        reader.close()


@pytest.fixture(scope="module")
def reader():
    with started(seconds=60) as reader:
        yield reader


def until(true):
    ends = time.monotonic() + 300  # the machine may be busy
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.02)


def is_there(number: int) -> bool:
    return os.path.exists(f"/proc/{number}")


def number_of(process) -> int:
    return process._worker._process.pid


def test_each_request_has_a_process_of_its_own_that_was_ready_before(reader, files):
    until(lambda: reader._ready.qsize() == READY)
    numbers = []
    for _ in range(2):
        with reader.process() as process:
            assert process.list(files["dicom"][0].parent)
            assert process.read(str(files["dicom"][0]), Reading()).error is None
            numbers.append(number_of(process))
    assert numbers[0] != numbers[1]
    until(lambda: not any(map(is_there, numbers)) and reader._ready.qsize() == READY)


def test_a_crash_ends_only_the_process_of_that_file(reader, files):
    with reader.process() as process:
        process.list(files["dicom"][0].parent)
        first = number_of(process)
        os.kill(first, signal.SIGKILL)
        until(lambda: not process._worker.is_alive)
        assert "damaged, or larger" in process.read(str(files["xml"][0]), Reading()).error
        assert process.read(str(files["xml"][0]), Reading()).error is None and number_of(process) != first


@pytest.mark.slow
def test_a_process_that_was_ended_while_it_waited_is_not_given_to_anybody(reader, files):
    until(lambda: reader._ready.qsize() == READY)
    worker = reader._ready.get()
    os.kill(worker._process.pid, signal.SIGKILL)
    until(lambda: not worker.is_alive)
    reader._ready.put(worker)
    for _ in range(READY):
        with reader.process() as process:
            assert process.read(str(files["xml"][0]), Reading()).error is None


def test_reading_ends_after_its_time_and_the_next_file_is_read(files, tmp_path):
    table, row = tmp_path / "long.csv", ",".join(f"{n / 7:.6f}" for n in range(12)) + "\n"
    table.write_text("I,II,III,aVR,aVL,aVF,V1,V2,V3,V4,V5,V6\n" + row * 100_000)
    with started(seconds=0.1) as reader:
        until(lambda: reader._ready.qsize() == READY)
        with reader.process() as process:
            begun = time.monotonic()
            item = process.read(str(table), Reading(sampling_rate=500, unit="mV"))
            assert "longer than 0.1 s" in item.error and time.monotonic() - begun < 30
            assert process._worker is None


@pytest.mark.slow
def test_reading_ends_at_its_memory_and_the_next_file_is_read(files, tmp_path):
    text = files["xml"][0].read_text()
    (tmp_path / "large.xml").write_text(text + f"<!-- {'x' * 60_000_000} -->")
    with started(seconds=120, memory_mb=30) as reader, reader.process() as process:
        error = process.read(str(tmp_path / "large.xml"), Reading()).error
        assert "memory" in error
        assert process.read(str(files["xml"][0]), Reading()).error is None


def test_members_of_a_zip_file_stay_inside(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../../out.csv", "1")
        archive.writestr("/abs.csv", "1")
    unpack(str(tmp_path), Limits())
    unpacked = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.csv"))
    assert unpacked == ["a/abs.csv", "a/out.csv"]


def test_a_zip_file_in_capitals_and_one_that_holds_a_name_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "EXPORT.ZIP", "w") as archive:
        archive.writestr("a.csv", "1")
    unpack(str(tmp_path), Limits())
    assert (tmp_path / "EXPORT" / "a.csv").is_file()
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("Mustermann.csv", "1")
        archive.writestr("Mustermann.csv", "2")
    with pytest.raises(Refusal, match="b.zip holds two files of one name"):
        unpack(str(tmp_path), Limits())
