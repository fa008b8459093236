"""`python app.py` in a process of its own, with no way to any other computer, and the examples of docs/app.md."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")
import httpx

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent.parent
NO_NETWORK = """
import os, socket
connect, look_up = socket.socket.connect, socket.getaddrinfo
def note(host):
    if str(host) not in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "None"):
        with open(os.environ["CALLS"], "a") as file:
            print(host, file=file)
        raise OSError(101, "Network is unreachable")
def only_here(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        note(address[0])
    return connect(self, address)
def known(host, *arguments, **options):
    note(host.decode() if isinstance(host, bytes) else host)
    return look_up(host, *arguments, **options)
socket.socket.connect, socket.getaddrinfo = only_here, known
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Deployed:
    """An app in a process of its own."""

    def __init__(self, model: Path, folder: Path):
        (folder / "sitecustomize.py").write_text(NO_NETWORK)
        self.calls, self.log, self.port = folder / "calls", folder / "log", free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        environment = os.environ | {"PYTHONPATH": str(folder), "CALLS": str(self.calls), "TMPDIR": str(folder)}
        command = [sys.executable, ROOT / "app.py", "--model", model, "--port", str(self.port), "--root-path", "/melp"]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        ends = time.monotonic() + 300
        while True:
            try:
                return urllib.request.urlopen(self.url, timeout=60).close()
            except OSError:
                assert self.process.poll() is None and time.monotonic() < ends, self.log.read_text()
                time.sleep(0.2)


@pytest.fixture(scope="module")
def deployed(root, tmp_path_factory):
    deployed = Deployed(root / "model", tmp_path_factory.mktemp("deployed"))
    yield deployed
    deployed.process.terminate()
    deployed.process.wait()


def documented(language: str, mark: str) -> str:
    """The example of docs/app.md in a language that has `mark` in it."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs/app.md").read_text(), re.S)
    (block,) = [block for block in blocks if mark in block]
    return block


def test_the_documented_curl_example_as_it_is_written(deployed, files, tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    shutil.copy(files["dicom"][0], tmp_path / "ecg.dcm")
    example = documented("bash", "curl").replace("http://127.0.0.1:7860", deployed.url)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    said = subprocess.run(["bash", "-euc", example], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    answers = [json.loads(line.removeprefix("data: ")) for line in said.stdout.splitlines() if line.startswith("data")]
    (asked,), (further,) = answers
    assert asked[0]["label"] == "atrial fibrillation" and further[0]["label"] == "long qt"


def test_the_documented_python_example_as_it_is_written(deployed, files, tmp_path, monkeypatch):
    for path in files["wfdb"]:
        shutil.copy(path, tmp_path / f"a{path.suffix}")
    header = tmp_path / "a.hea"
    header.write_text(header.read_text().replace("three", "a"))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(documented("python", "gradio_client").replace("http://127.0.0.1:7860", deployed.url), names)
    assert names["answer"]["record"] == "a" and names["further"][0]["label"] == "long qt"


def ask(deployed, files, visitor: int):
    """A visitor who reads a file and asks a question, by plain HTTP."""
    part = b'--melp\r\nContent-Disposition: form-data; name="files"; filename="Mustermann.dcm"\r\n\r\n'
    body = part + files["dicom"][0].read_bytes() + b"\r\n--melp--\r\n"
    with httpx.Client(base_url=f"{deployed.url}/gradio_api", timeout=300) as client:
        kind = {"Content-Type": "multipart/form-data; boundary=melp"}
        (path,) = client.post("/upload", content=body, headers=kind).json()
        for name, data in (("read", [[{"path": path}], 0, "", "", False]), ("ask", [[], f"words {visitor}"])):
            call = {"data": data, "session_hash": f"visitor{visitor}"}
            event = client.post(f"/call/{name}", json=call).json()["event_id"]
            assert "event: complete" in client.get(f"/call/{name}/{event}").text


def test_its_log_has_nothing_of_a_file_and_nobody_else_is_called(deployed, files):
    ask(deployed, files, 0)
    log = deployed.log.read_text()
    assert "MELP answers at" in log and "Traceback" not in log
    assert not re.search("Mustermann|Doe|three|one.dcm", log)
    assert not deployed.calls.exists(), deployed.calls.read_text()
