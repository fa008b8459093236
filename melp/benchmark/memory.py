"""Measures the memory that a long list of files, a day's Holter, and ten seconds of one take beyond a recording's."""

import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from melp.benchmark.startup import ROOT, small_model
from signal_melp import USUAL_LEADS

FILES, FOLDER = 1_000_000, 1000  # files in all, and in each folder
HOURS = (1, 24)
# Lists a folder as predict.py does, plans the output, and prints the GB that this added to the process, and seconds.
LIST = """
import resource, sys, time
from pathlib import Path
from melp.predict.paths import list_recordings
from melp.predict.plan import Plan
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
before, begun = peak(), time.perf_counter()
plan = Plan(Path(sys.argv[2]))
plan.prepare(list_recordings([sys.argv[1]]), {"model": "none", "processor": {"stride": None}})
print(len(plan.paths), peak() - before, time.perf_counter() - begun)
"""


# Reads ten seconds from the middle of a file, and prints the GB that this added to the process, and CPU seconds.
READ = """
import resource, sys, time
from formats_melp import read_ecg
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
before, begun = peak(), time.process_time()
block = read_ecg(sys.argv[1], start=float(sys.argv[2]), seconds=10)
assert block.signal.shape == (1, 12, 5000)
print(peak() - before, time.process_time() - begun)
"""


# Runs Python with the arguments, and prints its peak. In a process of its own: Linux counts the memory of the process
# that starts another as the other's peak, and the one that measures may be large.
MEASURE = """
import os, subprocess, sys
process = subprocess.Popen([sys.executable, *sys.argv[1:]])
_, status, usage = os.wait4(process.pid, 0)
print(end=f"\\n{usage.ru_maxrss}")
sys.exit(os.waitstatus_to_exitcode(status))
"""


def measure_memory() -> list[dict]:
    """Measures all; makes a million empty files and recordings of up to 2.3 GB below the folder of temporary files."""
    holters = [_measure_recording(hours) for hours in HOURS]
    parts = [_measure_part("aECG", write_aecg, HOURS[-1]), _measure_part("SCP-ECG", write_scp, 8 / 60)]
    return [_measure_list(FILES), *holters, *parts]


def _python(*arguments: str) -> tuple[str, float]:
    """Runs a Python process; returns what it prints, and the largest memory that it had, in GB."""
    path = os.pathsep.join([str(ROOT.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    if done.returncode:
        raise ValueError(f"a process that was to be measured failed: {' '.join(arguments)[:200]}")
    printed, _, peak = done.stdout.rpartition("\n")
    return printed, int(peak) / (1e9 if sys.platform == "darwin" else 1e6)


def _measure_list(files: int) -> dict:
    with tempfile.TemporaryDirectory() as root:
        for folder in range(-(-files // FOLDER)):
            place = Path(root, "files", f"patients-{folder:04}")
            place.mkdir(parents=True)
            for number in range(min(FOLDER, files - folder * FOLDER)):
                (place / f"recording-{folder:04}-{number:06}.dcm").touch()
        printed, _ = _python("-c", LIST, str(Path(root, "files")), str(Path(root, "out")))
    count, added, seconds = (float(word) for word in printed.split())
    return {"task": "memory", "way": f"a list of {count:,.0f} files", "gigabytes": added, "seconds": seconds}


def _measure_recording(hours: float) -> dict:
    with tempfile.TemporaryDirectory() as root:
        small_model(f"{root}/model")
        write_holter(Path(root), hours)
        options = ("--model", f"{root}/model", "--stride", "10", "--num-workers", "0", "--output", f"{root}/out")
        _, peak = _python("-m", "melp.predict", f"{root}/holter.hea", *options)
    return {"task": "memory", "way": f"predict.py --stride 10 on {hours:g} h", "gigabytes": peak, "seconds": None}


def _measure_part(name: str, write, hours: float) -> dict:
    with tempfile.TemporaryDirectory() as root:
        file = Path(root, "ecg")
        write(file, hours)
        size = file.stat().st_size / 1e6
        printed, _ = _python("-c", READ, str(file), str(1800 * hours))
    added, seconds = map(float, printed.split())
    way = f"10 s from the middle of {hours * 60:g} min of {name}, {size:,.1f} MB"
    return {"task": "memory", "way": way, "gigabytes": added, "seconds": seconds}


def write_aecg(file: Path, hours: float):
    """Writes an HL7 aECG of 12 leads at 500 Hz, with the same minute again and again."""
    minute = (np.random.default_rng(0).standard_normal((12, 500 * 60)).cumsum(1) * 2).astype(int)
    with open(file, "w", encoding="utf-8") as xml:
        xml.write(
            '<AnnotatedECG xmlns="urn:hl7-org:v3"><component><series><code code="RHYTHM"/><component><sequenceSet>'
        )
        xml.write(
            '<component><sequence><code code="TIME_RELATIVE"/><value><increment value="0.002" unit="s"/></value>'
        )
        xml.write("</sequence></component>")
        for lead, samples in zip(USUAL_LEADS, minute, strict=True):
            xml.write(f'<component><sequence><code code="MDC_ECG_LEAD_{lead.upper()}"/><value type="SLIST_PQ">')
            xml.write('<origin value="0" unit="uV"/><scale value="2.5" unit="uV"/><digits>')
            digits = " ".join(map(str, samples)) + "\n"
            for _ in range(round(60 * hours)):
                xml.write(digits)
            xml.write("</digits></value></sequence></component>")
        xml.write("</sequenceSet></component></series></component></AnnotatedECG>")


def write_scp(file: Path, hours: float):
    """Writes SCP-ECG of 12 leads at 500 Hz, 1, -1, 0, 0 in turns: a byte. The format allows 65,535 per lead."""
    samples = round(hours * 3600 * 500)
    packed = b"\x94" * (samples // 4)
    codes = (1, 2, 61, 62, 63, 64, *range(3, 9))
    sections = {
        2: struct.pack("<H", 19999),
        3: bytes([12, 0x64]) + b"".join(struct.pack("<IIB", 1, samples, code) for code in codes),
        6: struct.pack("<HHBB12H", 2500, 2000, 0, 0, *[len(packed)] * 12) + packed * 12,
    }
    body, pointers, position = b"", [(0, 16 + 40, 7)], 6 + 16 + 40
    for number, content in sections.items():
        content = struct.pack("<HHI8x", 0, number, 16 + len(content)) + content
        pointers.append((number, len(content), position + len(body) + 1))
        body += content
    index = b"".join(struct.pack("<HII", *pointer) for pointer in pointers)
    whole = struct.pack("<HHI2x6s", 0, 0, 16 + len(index), b"SCPECG") + index + body
    file.write_bytes(struct.pack("<HI", 0, len(whole) + 6) + whole)


def write_holter(folder: Path, hours: float):
    """Writes the WFDB record `holter` of 12 leads at 500 Hz, minute by minute, with its checksums."""
    minute = (np.random.default_rng(0).standard_normal((500 * 60, 12)).cumsum(0) * 20).astype("<i2")
    minutes, sums = round(60 * hours), np.zeros(12, dtype=np.int64)
    with open(folder / "holter.dat", "wb") as file:
        for number in range(minutes):
            samples = np.roll(minute, 37 * number, axis=0)
            file.write(samples.tobytes())
            sums += samples.sum(axis=0, dtype=np.int64)
    lines = [f"holter 12 500 {minutes * len(minute)}"]
    for lead, first, total in zip(USUAL_LEADS, minute[0], sums, strict=True):
        lines.append(f"holter.dat 16 1000/mV 16 0 {first} {(total + 2**15) % 2**16 - 2**15} 0 {lead}")
    (folder / "holter.hea").write_text("\n".join(lines) + "\n")
