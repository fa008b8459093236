"""How much memory predictions take beyond one recording: of a long list of files, and of a day's Holter."""

import os
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
    """Measures both; makes a million empty files and a recording of 1 GB below the folder of temporary files."""
    return [_measure_list(FILES), *(_measure_recording(hours) for hours in HOURS)]


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
