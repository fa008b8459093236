"""Measures how long visitors of the app wait: its start, the first answer to a file, and further queries in words."""

import contextlib
import itertools
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import torch

from melp.benchmark.case import new_case
from signal_melp import LEADS

USERS = (1, 10)
REQUESTS = 3  # of each user
NOTHING_ELSE = [0, "", "", False]  # of the parameters of /read: JSON over HTTP has to give all
PATIENCE = 300  # s for the start, and for an answer
SERVE = """
import sys, threading
from melp.app.engine import Settings
from melp.app.run import serving
if "__main__" == __name__:
    with serving(Settings(sys.argv[1]), port=int(sys.argv[2])):
        threading.Event().wait()
"""


def measure_app(options) -> list[dict]:
    """Starts the app in a process of its own and asks it, as one visitor and as ten at once.

    Raises:
        ValueError: where the app does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, started, cases = f"http://127.0.0.1:{port}", time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "serve.py")
        script.write_text(SERVE)
        root = str(Path(__file__).resolve().parent.parent.parent)
        server = subprocess.Popen([sys.executable, script, options.model, str(port)], env=_environment(root))
        try:
            _wait(url, server, started)
            cases.append(_case("start", 1, [time.perf_counter() - started]))
            record = _record(folder)
            _read(url, record, "warm-up")  # the first of all waits for imports
            for users in USERS:
                names = [secrets.token_hex(8) for _ in range(users)]
                for way, ask in (
                    ("first answer to a 10 s file", lambda name: _read(url, record, name)),
                    ("a further query in words", lambda name: _call(url, "ask", [[], secrets.token_hex(4)], name)),
                ):
                    before = _cpu_seconds(server.pid)
                    with ThreadPoolExecutor(users) as pool:  # one after the other, as a visitor does
                        asked = pool.map(lambda name, ask=ask: [ask(name) for _ in range(REQUESTS)], names)
                        waits = list(itertools.chain.from_iterable(asked))
                    spent = (_cpu_seconds(server.pid) - before) / len(waits)
                    cases.append(_case(way, users, waits, cpu_seconds=spent))
        finally:
            server.terminate()
            server.wait()
    return cases


def _environment(root: str) -> dict:
    return os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


def _wait(url: str, server: subprocess.Popen, started: float):
    while time.perf_counter() - started < PATIENCE and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return
        except OSError:
            time.sleep(0.1)
    raise ValueError("the app did not start; see what it printed.")


def _record(folder: str) -> list[Path]:
    import wfdb

    signal = np.random.default_rng(0).standard_normal((5000, 12)).cumsum(0) / 50
    units = {"fs": 500, "units": ["mV"] * 12, "sig_name": list(LEADS), "fmt": ["16"] * 12}
    wfdb.wrsamp("r", p_signal=signal, write_dir=folder, **units)
    return [Path(folder, f"r{suffix}") for suffix in (".hea", ".dat")]


def _read(url: str, record: list[Path], visitor: str) -> float:
    """Uploads a record and returns the seconds from then on until the answer is there."""
    boundary = "melp"
    parts = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'.encode()
        + path.read_bytes()
        + b"\r\n"
        for path in record
    )
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    body = parts + f"--{boundary}--\r\n".encode()
    uploaded = urllib.request.urlopen(urllib.request.Request(f"{url}/gradio_api/upload", body, kind)).read()
    return _call(url, "read", [[{"path": path} for path in json.loads(uploaded)], *NOTHING_ELSE], visitor)


def _call(url: str, name: str, values: list, visitor: str) -> float:
    started = time.perf_counter()
    data = json.dumps({"data": values, "session_hash": visitor}).encode()
    request = urllib.request.Request(f"{url}/gradio_api/call/{name}", data, {"Content-Type": "application/json"})
    event = json.loads(urllib.request.urlopen(request).read())["event_id"]
    answer = urllib.request.urlopen(f"{url}/gradio_api/call/{name}/{event}", timeout=PATIENCE).read().decode()
    if "event: complete" not in answer:
        raise ValueError(f"the app answered {answer[:300]!r}")
    return time.perf_counter() - started


def _cpu_seconds(server: int) -> float:
    """Returns the CPU time of the app and of the processes that it started, those that have ended among them."""
    process, spent = psutil.Process(server), 0.0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            spent += sum(one.cpu_times()[:4])
    return spent


def _case(way: str, users: int, waits: list[float], **others) -> dict:
    p50, p95 = np.percentile(waits, [50, 95])
    others |= {"way": way, "p50_seconds": float(p50), "p95_seconds": float(p95), "requests": len(waits)}
    return new_case("app", torch.device("cpu"), "float32", users, 1 / float(np.mean(waits)), **others)
