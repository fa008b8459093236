"""`python app.py` as a hospital runs it: behind a reverse proxy, below a path, with no way to any other computer."""

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

pytest.importorskip("uvicorn", reason="gradio is not installed")  # which brings it, and is slow to import
import httpx
import uvicorn
from starlette.responses import StreamingResponse

from melp.app.screenshots import find_chromium

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

    def memory(self) -> float:
        """MB that only the app and its processes have."""
        app = psutil.Process(self.process.pid)
        return sum(one.memory_full_info().uss for one in (app, *app.children(recursive=True))) / 2**20


@pytest.fixture(scope="module")
def deployed(root, tmp_path_factory):
    deployed = Deployed(root / "model", tmp_path_factory.mktemp("deployed"))
    yield deployed
    deployed.process.terminate()
    deployed.process.wait()


@pytest.fixture(scope="module")
def proxied(deployed):
    """The address of a reverse proxy that shows the app at /melp/, and hands answers on as they come."""
    port = free_port()
    headers = {"host": f"127.0.0.1:{port}", "x-forwarded-proto": "http", "x-forwarded-host": f"127.0.0.1:{port}"}

    async def pass_on(scope, receive, send):
        if scope["type"] != "http":
            return
        assert scope["path"].startswith("/melp/")
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        path = scope["raw_path"].decode().removeprefix("/melp") + "?" + scope["query_string"].decode()
        sent = {name.decode(): value.decode() for name, value in scope["headers"]} | headers
        async with httpx.AsyncClient(timeout=300) as client:
            request = client.build_request(scope["method"], deployed.url + path, content=body, headers=sent)
            answer = await client.send(request, stream=True)
            kept = {name: value for name, value in answer.headers.items() if name != "transfer-encoding"}
            await StreamingResponse(answer.aiter_raw(), answer.status_code, kept)(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(pass_on, port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{port}/melp/"
    server.should_exit = True
    thread.join(30)


def documented(language: str, mark: str) -> str:
    """The example of docs/app.md in a language that has `mark` in it."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs/app.md").read_text(), re.S)
    (block,) = [block for block in blocks if mark in block]
    return block


def test_the_page_works_behind_a_proxy_and_nobody_else_is_called(proxied, deployed, files):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if find_chromium() is None:
        pytest.skip("Chromium is not installed")
    outside = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: outside.append(request.url))
        page.set_default_timeout(300_000)
        page.goto(proxied)
        page.locator("input[type=file]").first.set_input_files([str(path) for path in files["wfdb"]])
        page.locator("#ecg svg path.trace[data-lead=V6]").wait_for(state="attached")
        page.get_by_text("Drafted report").wait_for()
        page.locator("[data-evidence]").first.click()
        page.locator(".evidence").wait_for()
        browser.close()
    assert not [url for url in outside if not url.startswith((proxied, "data:", "blob:"))]
    assert not deployed.calls.exists(), deployed.calls.read_text()


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


def test_memory_is_back_where_it_was_after_load(deployed, files):
    """Fifteen recordings are kept before and after; each answer more leaves nothing."""

    def visit(times: int) -> float:
        for number in range(times):
            ask(deployed, files, number % 15)
        time.sleep(2)
        return deployed.memory()

    before = visit(30)
    assert visit(60) < before + 15
    assert not [path for path in deployed.log.parent.glob("melp-app-*/**/*") if path.is_file()]


def test_its_log_has_nothing_of_a_file(deployed, files):
    ask(deployed, files, 0)
    log = deployed.log.read_text()
    assert "MELP answers at" in log and "Traceback" not in log
    assert not re.search("Mustermann|Doe|three|one.dcm", log)
