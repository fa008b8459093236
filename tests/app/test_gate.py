"""Nobody passes the gate by: other routes, files of the server, large requests, and what a wrong call held."""

import json
import logging
import threading
import urllib.error
import urllib.request

import httpx
import pytest
from asking import left_behind, new_client, upload

WRONG_CALLS = [
    ("call/read", {"data": [[{"path": "/tmp/Mustermann.dcm"}]]}),
    ("call/read", {"data": [[{"path": "/tmp/Mustermann.dcm"}], 0, "", "", False]}),
    ("call/read", {"data": ["Mustermann", "Mustermann", 5, None, "Mustermann"]}),
    ("call/ask", {"data": [[{"Mustermann": 1}], ["Mustermann"]]}),
    ("call/search", {"data": ["Mustermann", None, "Mustermann"]}),
    ("call/Mustermann", {"data": ["Mustermann"]}),
    ("call/v2/read", {"Mustermann": 1}),
    ("api/read", {"data": ["Mustermann"]}),
    ("queue/join", {"data": ["Mustermann"], "fn_index": 999, "session_hash": "Mustermann"}),
    ("call/read", "Mustermann"),
]


@pytest.mark.parametrize("route, body", WRONG_CALLS)
def test_a_wrong_call_leaves_no_trace_of_what_it_held(served, route, body, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    request = urllib.request.Request(
        f"{served.url}gradio_api/{route}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        answer = json.loads(urllib.request.urlopen(request).read())
        with urllib.request.urlopen(f"{served.url}gradio_api/{route}/{answer['event_id']}", timeout=60) as stream:
            answer = stream.read().decode()
        assert "event: error" in answer and "no longer" not in answer.partition("event: error")[0]
    except urllib.error.HTTPError as error:
        assert error.code in (400, 404, 422, 500)
    heard = capfd.readouterr()
    for text in (heard.out, heard.err, *(record.getMessage() for record in caplog.records)):
        assert "Mustermann" not in text and "Traceback" not in text


@pytest.mark.parametrize("way", ["api", "run"])
def test_nobody_passes_the_queue_by(served, way):
    answer = httpx.post(f"{served.url}gradio_api/{way}/search", json={"data": ["atrial fibrillation", None, 1]})
    assert answer.status_code == 404 and served.page.api_open is False


def test_a_call_that_says_nothing_of_its_length_ends_at_the_limit(served):
    answer = httpx.post(f"{served.url}gradio_api/queue/join", content=(b"0" * 2**20 for _ in range(5)), timeout=60)
    assert answer.status_code == 413 and "4 MB" in answer.text


def test_a_file_that_is_too_large_is_refused_before_it_is_kept(served):
    """A gigabyte is refused by what it says of itself, a request that says nothing after as much as is allowed."""
    request = urllib.request.Request(f"{served.url}gradio_api/upload", b"x", {"Content-Length": str(2**30)})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request)
    assert error.value.code == 413 and "3 MB" in error.value.read().decode()
    part = b'--melp\r\nContent-Disposition: form-data; name="files"; filename="large.csv"\r\n\r\n' + b"0" * 2_500_000
    kind = {"Content-Type": "multipart/form-data; boundary=melp"}
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(
            urllib.request.Request(f"{served.url}gradio_api/upload", part + b"\r\n--melp--\r\n", kind)
        )
    assert error.value.code == 413 and "2 MB" in error.value.read().decode()
    assert not left_behind(served)


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd",
        "gradio_api/file=../../../../etc/passwd",
        "gradio_api/file=%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "gradio_api/file=https://example.org/x",
        "gradio_api/proxy=https://example.org/x",
        "gradio_api/file/etc/passwd",
        "static/../../../../../etc/passwd",
        "gradio_api/deep_link",
        "gradio_api/runs",
        "docs",
    ],
)
def test_no_path_of_the_server_can_be_read(served, path):
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(served.url + path)
    assert error.value.code in (403, 404) and b"root:" not in error.value.read()


@pytest.mark.slow
def test_ten_at_once_upload_the_same_file(served, files):
    """Nobody's answer deletes the file of another."""
    answers = []

    def ask():
        mine = new_client(served)
        answers.append(mine.predict(upload(files["dicom"]), api_name="/read")["findings"][0]["score"])

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 10 and len({round(score, 5) for score in answers}) == 1 and not left_behind(served)
