"""What a client or the page asks is answered: of every format, of batches too, and nothing of a file stays."""

import json
import threading
import time
import zipfile
from types import SimpleNamespace

import httpx
import pytest
from asking import left_behind, new_client, upload, uploaded

from melp.app.limits import Refusal
from melp.notice import NOTICE

ui = pytest.importorskip("melp.app.ui")


@pytest.mark.parametrize("kind", ["dicom", "xml", "wfdb"])
def test_every_format_is_read_and_its_upload_deleted(client, served, files, kind):
    answer = client.predict(upload(files[kind]), api_name="/read")
    assert answer["notice"] == NOTICE and answer["quality"]["sampling_rate"] == 500
    assert {"label", "score", "probability"} < answer["findings"][0].keys()
    assert "identifiers" not in answer and "Doe" not in json.dumps(answer)
    assert not left_behind(served)


@pytest.mark.slow
def test_a_client_asks_further_about_the_recording_that_it_read_last(served, files):
    mine, other = new_client(served), new_client(served)
    mine.predict(upload(files["dicom"]), api_name="/read")
    assert mine.predict([], "long qt", api_name="/ask") == mine.predict(
        upload(files["dicom"]), "long qt", api_name="/ask"
    )
    assert mine.predict([], api_name="/report") == mine.predict(upload(files["dicom"]), api_name="/report")
    with pytest.raises(Exception, match="no longer kept"):
        other.predict([], "long qt", api_name="/ask")


def test_identifying_fields_are_given_when_asked_for(client, files):
    answer = client.predict(upload(files["dicom"]), identifiers=True, api_name="/read")
    assert answer["identifiers"]["name"] == "Doe^Jane"


def test_search_by_words_and_by_a_recording_shows_no_place(client, root):
    hits = client.predict("atrial fibrillation", api_name="/search")
    assert len(hits) == 3 and str(root) not in json.dumps(hits) and "patient" not in hits[0]
    record = [root / "archive" / f"archived1{suffix}" for suffix in (".hea", ".dat")]
    nearest = client.predict("", upload(record), 1, api_name="/search")
    assert nearest[0]["record"] == "archived1" and nearest[0]["similarity"] == pytest.approx(1, abs=1e-4)


def test_a_page_says_where_it_took_not_all(served, uploads, monkeypatch):
    app = ui.App(served.app.engine, uploads)
    recording, visitor = app.engine.simulated("synthetic-0000000-0"), SimpleNamespace(session_hash="visitor")
    for number, is_said in ((40, False), (41, True)):
        monkeypatch.setattr(app.engine, "read", lambda *_, number=number: iter([recording] * number))
        _, said, choice, *_ = app.page_read(uploaded(uploads, "many.zip"), "", "", "", False, visitor)
        assert ("first 40 recordings" in said) == is_said and len(choice["choices"]) == 40


def test_a_choice_that_cannot_be_shown_says_so_where_no_draft_comes_after(served):
    app = ui.App(served.app.engine, served.app.uploads)
    *_, evidence, _ = app.page_choose(0, False, SimpleNamespace(session_hash="nobody"))
    assert "no longer kept" in evidence


def test_a_wrong_call_is_explained(client):
    with pytest.raises(Exception, match="number of Hz"):
        client.predict([{"path": "x"}], "fast", api_name="/read")
    for unit, leads, said in (
        ("mmHg", "", "unknown unit: 'mmHg'"),
        ("", "I Q9", "unknown lead: 'Q9'"),
        (5, "", "unit"),
    ):
        with pytest.raises(Refusal, match=f"^(?!.*(--|Hz)).*{said}"):
            ui.reading_of(500, unit, leads)


def test_a_zip_file_is_a_batch(client, served, files, tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in [*files["wfdb"], *files["xml"]]:
            archive.write(path, f"some folder/{path.name}")
        archive.writestr("some folder/notes.txt", "Mustermann, no ECG")
    answer = client.predict(upload([tmp_path / "all.zip"]), api_name="/batch")
    records = sorted(row["record"] for row in answer["recordings"])
    assert records == ["all/some folder/three", "all/some folder/two.xml"]
    (rejected,) = answer["rejected"]
    assert rejected["record"] == "all/some folder/notes.txt" and "Mustermann" not in rejected["reason"]
    assert not left_behind(served)


def test_a_request_is_answered_while_a_batch_runs(client, served, files, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "many.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.write(files["xml"][0], f"{number}.xml")
    answered, engine = threading.Event(), served.app.engine
    recording = engine._recording

    def wait(item, name):
        if name.startswith("many/"):
            assert answered.wait(120)
        return recording(item, name)

    monkeypatch.setattr(engine, "_recording", wait)
    batch = client.submit(upload([tmp_path / "many.zip"]), api_name="/batch")
    until = time.monotonic() + 60
    while not list(served.app.uploads._requests.glob("*/many/*.xml")) and time.monotonic() < until:
        time.sleep(0.01)
    assert new_client(served).predict(upload(files["dicom"]), api_name="/read")["record"] == "one.dcm"
    assert not batch.done()
    answered.set()
    assert len(batch.result(120)["recordings"]) == 3


@pytest.mark.slow
def test_a_batch_ends_when_its_client_leaves(served, slow_batch):
    path, ended = slow_batch
    with httpx.Client(base_url=f"{served.url}/gradio_api".replace("//gradio", "/gradio"), timeout=120) as visitor:
        (uploaded,) = visitor.post("/upload", files={"files": path.open("rb")}).json()
        event = visitor.post("/call/batch", json={"data": [[{"path": uploaded}]]}).json()["event_id"]
        with visitor.stream("GET", f"/call/batch/{event}") as answer:
            lines = (line for line in answer.iter_lines() if line.startswith("data: ["))
            assert json.loads(next(lines)[6:])[0]["done"] < 8
    ended()


def test_a_batch_ends_whose_messages_nobody_fetches(served, files, tmp_path, monkeypatch):
    monkeypatch.setattr(ui, "UNHEARD", 2)
    monkeypatch.setattr(ui, "SHOW_EVERY", 0)
    with zipfile.ZipFile(tmp_path / "many.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(8):
            archive.write(files["xml"][0], f"{number}.xml")
    uploads, engine, read = served.app.uploads, served.app.engine, []
    recording = engine._recording
    monkeypatch.setattr(engine, "_recording", lambda item, name: read.append(name) or recording(item, name))
    url = f"{served.url}gradio_api"
    (uploaded,) = httpx.post(f"{url}/upload", files={"files": (tmp_path / "many.zip").open("rb")}).json()
    httpx.post(f"{url}/call/batch", json={"data": [[{"path": uploaded}]]})
    ends = time.monotonic() + 120
    while not read or list(uploads._requests.iterdir()):
        assert time.monotonic() < ends
        time.sleep(0.02)
    assert len(read) < 8
