"""The app as clients ask it: answers as the pipelines', limits, nothing left behind, nothing of the server shown."""

import json
import logging
import os
import shutil
import signal
import threading
import time
import urllib.error
import urllib.request
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pyarrow.parquet as parquet
import pytest
from transformers import pipeline

from melp.app.engine import align, device_of, find_beats_of
from melp.app.examples import EXAMPLES, RECORDS, simulated_block
from melp.app.kept import Kept, Recording
from melp.app.limits import Limits, Refusal, without_quotations
from melp.app.uploads import Uploads
from melp.notice import NOTICE
from melp.predict.reading import Reading
from melp.search import open_index
from melp.synthetic import corpus

ROOT = Path(__file__).resolve().parent.parent.parent
gradio_client = pytest.importorskip("gradio_client", reason="gradio is not installed")
Client, handle_file = gradio_client.Client, gradio_client.handle_file
ui = pytest.importorskip("melp.app.ui")


def new_client(served) -> "Client":
    return Client(served.url, verbose=False, httpx_kwargs={"timeout": 120})  # the machine may be busy


@pytest.fixture(scope="module")
def client(served):
    return new_client(served)


def upload(paths) -> list:
    return [handle_file(str(path)) for path in paths]


def left_behind(served) -> list[str]:
    """Uploads that are still there, in the folder that visitors write to and in that of requests."""
    folders = (served.app.uploads.root, served.app.uploads._requests)
    return [
        str(path)
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and "download-" not in str(path)
    ]


@pytest.mark.parametrize("kind", ["dicom", "xml", "wfdb"])
def test_every_format_is_read_and_its_upload_deleted(client, served, files, kind):
    answer = client.predict(upload(files[kind]), api_name="/read")
    assert answer["notice"] == NOTICE and answer["quality"]["sampling_rate"] == 500
    assert {"label", "score", "probability"} < answer["findings"][0].keys()
    assert "identifiers" not in answer and "Doe" not in json.dumps(answer)
    assert not left_behind(served)


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


def test_answers_are_those_of_the_pipelines(client, root, files):
    path, words = str(files["wfdb"][0]), ["atrial fibrillation", "any words"]
    asked = client.predict(upload(files["wfdb"]), ", ".join(words), api_name="/ask")
    from melp.evaluation.prompts import PROMPTS, load_yaml

    prompts = load_yaml(PROMPTS)["findings"]["atrial fibrillation"]
    ask = pipeline("zero-shot-classification", model=str(root / "model"), trust_remote_code=True)
    expected = {row["label"]: row for row in ask(path, candidate_labels={words[0]: prompts, words[1]: None})}
    for row in asked:
        assert row["score"] == pytest.approx(expected[row["label"]]["score"], abs=1e-4)
        assert row["probability"] == expected[row["label"]]["probability"]
    draft = pipeline("ecg-to-text", model=str(root / "model"), trust_remote_code=True)(path)
    assert client.predict(upload(files["wfdb"]), api_name="/report") == draft
    embedding = pipeline("feature-extraction", model=str(root / "model"), trust_remote_code=True)(path)
    np.testing.assert_allclose(client.predict(upload(files["wfdb"]), api_name="/embed"), embedding, atol=1e-4)


@pytest.mark.slow
def test_evidence_says_where_and_whether_it_is_faithful(client, files):
    evidence = client.predict(upload(files["xml"]), "atrial fibrillation", api_name="/evidence")
    assert evidence["text"] == "atrial fibrillation" and isinstance(evidence["faithfulness"]["faithful"], bool)


def test_two_recordings_are_compared(client, files):
    compared = client.predict(upload(files["xml"]), upload(files["dicom"]), api_name="/compare")
    row = compared["findings"][0]
    assert row["change"] == pytest.approx(row["second"]["score"] - row["first"]["score"])
    same = client.predict(upload(files["xml"]), upload(files["xml"]), api_name="/compare")
    assert same["shift_s"] == 0 and compared["left_out"] == [] and all(row["change"] == 0 for row in same["findings"])


def test_search_by_words_and_by_a_recording_shows_no_place(client, root):
    hits = client.predict("atrial fibrillation", api_name="/search")
    assert len(hits) == 3 and str(root) not in json.dumps(hits) and "patient" not in hits[0]
    record = [root / "archive" / f"archived1{suffix}" for suffix in (".hea", ".dat")]
    nearest = client.predict("", upload(record), 1, api_name="/search")
    assert nearest[0]["record"] == "archived1" and nearest[0]["similarity"] == pytest.approx(1, abs=1e-4)


def test_a_hit_is_read_as_its_index_was(served, root, tmp_path, monkeypatch):
    (file,) = (root / "index" / "data").glob("*.parquet")
    table = parquet.read_table(file)
    told = json.loads(table.schema.metadata[b"melp"])
    told["processor"] |= {"lead_subset": ["II", "V2"], "unit": "mV", "start": 1.0, "stride": 5.0}
    (tmp_path / "data").mkdir()
    parquet.write_table(table.replace_schema_metadata({"melp": json.dumps(told)}), tmp_path / "data" / "0.parquet")
    index = open_index(tmp_path)
    hit = index.table.to_pylist()[0]
    assert index.reading_of(hit | {"start": 2.0}) == Reading(
        lead_subset=("II", "V2"), unit="mV", start=2.0, seconds=10.0
    )
    monkeypatch.setattr(served.app.engine, "index", index)
    assert served.app.engine.open_hit(hit).row["leads"] == ["II", "V2"]


def test_what_is_left_out_is_said(served):
    engine = served.app.engine
    whole = engine.simulated("synthetic-0000000-0")
    part = replace(whole, row=whole.row | {"condition": "lead I", "left_out": ["pacing"]})
    answer = engine.answer(part)
    assert answer["left_out"] == ["pacing"] and answer["condition"] == "lead I"
    assert engine.compare(part, whole)["left_out"] == ["pacing"] == engine.compare(whole, part)["left_out"]


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


# -------------------------------------------------------------------------------------------------- hostile visitors


def bomb(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.csv", b"0" * 50_000_000)
    return path


def hostile_xml(path: Path) -> Path:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    path.write_text(f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e0 "Mustermann">{entities}]><x>&e11;</x>')
    return path


def outside_xml(path: Path) -> Path:
    path.write_text('<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>')
    return path


def wrong_extension(path: Path) -> Path:
    path.write_bytes(b"Mustermann was here " * 100)
    return path.rename(path.with_suffix(".dcm"))


def truncated(path: Path) -> Path:
    path.write_bytes(b"\0" * 128 + b"DICM" + b"Mustermann" * 20)
    return path


@pytest.mark.parametrize("make", [bomb, hostile_xml, outside_xml, wrong_extension, truncated])
def test_what_is_no_ecg_gets_a_message_and_leaves_no_trace(client, served, make, tmp_path, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    path = make(tmp_path / ("bad.zip" if make is bomb else "bad.xml"))
    with pytest.raises(Exception) as error:
        client.predict(upload([path]), api_name="/read")
    message, heard = str(error.value), capfd.readouterr()
    assert "bad" in message or "holds more" in message
    for text in (message, heard.out, heard.err):
        assert "Mustermann" not in text and "root:" not in text and "Traceback" not in text
    assert not [record for record in caplog.records if record.name.startswith("melp") and "Muster" in record.message]
    assert not left_behind(served)


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


def test_uploads_do_not_fill_the_disk(served, monkeypatch):
    monkeypatch.setattr("melp.app.uploads.shutil.disk_usage", lambda _: SimpleNamespace(total=2**40, free=2**20))
    answer = httpx.post(f"{served.url}gradio_api/upload", files={"files": b"1,2"})
    assert answer.status_code == 507 and "no room" in answer.text and not left_behind(served)


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


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "model.safetensors", "a\0b"])
def test_a_client_gets_none_but_uploaded_files(served, root, path):
    for place in (path, str(root / "model" / "config.json")):
        with pytest.raises(Refusal, match="upload"), served.app.uploads.take([{"path": place}]):
            pass


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


def test_a_hit_is_opened_without_what_its_file_says_of_the_patient(served, files):
    hit = {"path": str(files["dicom"][0]), "record": "one.dcm", "start": 0.0}
    assert served.app.engine.open_hit(hit).identifiers == {}


def test_a_visitor_who_leaves_is_forgotten(served):
    kept = Kept(minutes=1)
    recording = served.app.engine.simulated("synthetic-0000000-0")
    kept.put("visitor", [recording])
    assert kept.get("visitor") == [recording] and kept.get("other") == []
    kept.forget("visitor")
    assert len(kept) == 0
    kept = Kept(minutes=1e-9)
    kept.put("visitor", [recording])
    time.sleep(0.01)
    assert kept.get("visitor") == []


def test_what_nobody_asks_about_is_forgotten_without_a_further_request(served, uploads):
    app, uploads.limits = ui.App(served.app.engine, uploads), Limits(keep_minutes=0.001)
    app.kept, app.last_hits = Kept(minutes=0.001), Kept(minutes=0.001)
    app.kept.put("visitor", [served.app.engine.simulated("synthetic-0000000-0")])
    app.last_hits.put("visitor", [{"record": "a"}])
    uploads.start(app.expire)
    ends = time.monotonic() + 60
    while len(app.kept) or len(app.last_hits):
        assert time.monotonic() < ends
        time.sleep(0.02)


# ---------------------------------------------------------------------------------------------------------- its parts


def test_errors_quote_nothing():
    assert without_quotations("wrong header: gain is 'Erika Mustermann', not a number; correct the header") == (
        "wrong header: gain is (not shown), not a number; correct the header"
    )
    assert without_quotations("too long; name a part by --start") == "too long; take a shorter part of it"


@pytest.mark.parametrize("limits", [{"seconds": 0}, {"file_mb": -1}])
def test_limits_are_above_zero(limits):
    with pytest.raises(ValueError, match="must be above 0"):
        Limits(**limits)


@pytest.fixture
def uploads(monkeypatch, tmp_path):
    """Uploads with times of less than a millisecond."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    uploads = Uploads(Limits(keep_minutes=1e-9, batch_seconds=1e-9))
    yield uploads
    uploads.close()


def uploaded(uploads, *names: str) -> list[dict]:
    """Files that visitors uploaded, as Gradio describes them."""
    paths = [uploads.root / f"visitor{number}" / "digest" / name for number, name in enumerate(names)]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_text("0")
    return [{"path": str(path)} for path in paths]


def test_the_sweeper_goes_on_where_a_folder_vanishes(uploads, monkeypatch):
    uploaded(uploads, *"abc")
    unlink, removed = Path.unlink, []

    def beside_a_request(path):
        """Deletes a file, and all the others, which requests took meanwhile."""
        unlink(path)
        for folder in uploads.root.iterdir():
            if folder not in path.parents:
                shutil.rmtree(folder)
                removed.append(folder)

    monkeypatch.setattr(Path, "unlink", beside_a_request)
    time.sleep(0.01)
    uploads.sweep()
    assert len(removed) == 2
    uploads.sweep()
    assert not list(uploads.root.iterdir())


def test_an_upload_waits_for_the_batch_before_it_longer_than_a_download(uploads):
    uploads.limits = Limits(keep_minutes=1e-9)
    (file,) = uploaded(uploads, "a.dcm")
    uploads.new_download("predictions.csv").write_text("a")
    time.sleep(0.01)
    uploads.sweep()
    assert [path for path in uploads.root.rglob("*") if path.is_file()] == [Path(file["path"])]


def test_headers_of_one_name_need_samples_each(uploads):
    for names in (["a.hea", "a.dat", "a.hea"], ["a.dat", "a.hea", "a.dat"]):
        files = uploaded(uploads, *names)
        with pytest.raises(Refusal, match="one folder at a time"), uploads.take(files):
            pass
    with uploads.take(uploaded(uploads, "a.hea", "a.dat", "a.hea", "a.dat", "b.hea")) as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["a.dat", "a.hea", "again 2", "b.hea"]


def test_members_of_a_zip_file_stay_inside(tmp_path):
    from melp.app.reader import unpack

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../../out.csv", "1")
        archive.writestr("/abs.csv", "1")
    unpack(str(tmp_path), Limits())
    unpacked = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.csv"))
    assert unpacked == ["a/abs.csv", "a/out.csv"]


def test_a_zip_file_in_capitals_and_one_that_holds_a_name_twice(tmp_path):
    from melp.app.reader import unpack

    with zipfile.ZipFile(tmp_path / "EXPORT.ZIP", "w") as archive:
        archive.writestr("a.csv", "1")
    unpack(str(tmp_path), Limits())
    assert (tmp_path / "EXPORT" / "a.csv").is_file()
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("Mustermann.csv", "1")
        archive.writestr("Mustermann.csv", "2")
    with pytest.raises(Refusal, match="b.zip holds two files of one name"):
        unpack(str(tmp_path), Limits())


def test_the_files_of_a_space(tmp_path):
    """A Space installs the requirements where the files are not yet: none of them may be a path."""
    import yaml
    from packaging.requirements import Requirement

    import app

    app.main(["--write-space", str(tmp_path / "space")])
    _, header, text = (tmp_path / "space" / "README.md").read_text().split("---\n")
    fields = yaml.safe_load(header)
    assert fields["sdk"] == "gradio" and (ROOT / fields["app_file"]).is_file() and NOTICE in text
    assert fields["sdk_version"] == version("gradio") and fields["python_version"] == "3.11"
    assert len(fields["short_description"]) <= 60
    options, *lines = (tmp_path / "space" / "requirements.txt").read_text().splitlines()
    names = {Requirement(line).name for line in lines}
    assert options.startswith("--extra-index-url") and {"torch", "transformers", "h5py", "pydicom"} < names
    assert not {"melp", "gradio"} & names


def test_a_missing_model_is_named(tmp_path):
    import app

    with pytest.raises(SystemExit, match="app.py: "):
        app.main(["--model", str(tmp_path / "nowhere")])


def test_a_space_that_cannot_be_written_and_a_device_that_is_not_there_are_named(tmp_path):
    import app

    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="app.py: .*file"):
        app.main(["--write-space", str(tmp_path / "file")])
    for device in ("foo", "cuda:99"):
        with pytest.raises(ValueError, match=f"--device {device}: "):
            device_of(device)


def test_a_stop_by_the_system_ends_it_as_ctrl_c_does(monkeypatch):
    import app

    ended, before = [], signal.getsignal(signal.SIGTERM)

    @contextmanager
    def serving(*_):
        if signal.getsignal(signal.SIGTERM) is before:
            pytest.fail("nobody hears it")
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            yield SimpleNamespace(url="")
        finally:
            ended.append(True)

    monkeypatch.setattr("melp.app.run.serving", serving)
    try:
        with pytest.raises(SystemExit) as stopped:
            app.main(["--model", "here"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 0 and ended


def test_what_reads_ends_where_the_model_cannot_be_loaded(monkeypatch):
    from melp.app import run
    from melp.app.engine import Settings

    class Reader:
        start, ended = staticmethod(lambda: None), False

        def __init__(self, limits):
            Reader.last = self

        def close(self):
            self.ended = True

    monkeypatch.setattr(run, "Reader", Reader)
    with pytest.raises(ValueError, match="nowhere"), run.serving(Settings("./nowhere")):
        pass
    assert Reader.last.ended


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_of_what_its_name_says(name):
    item = next(one for one in corpus.plan(records=RECORDS).to_pylist() if one["record"] == EXAMPLES[name])
    labels = corpus.simulated(item)[2].labels["findings"]
    assert {"Normal": "normal ecg"}.get(name, name.lower()) in labels


def drawn(number: int) -> tuple[Recording, list[float]]:
    """A simulated recording, and where its beats are."""
    item = corpus.plan(records=RECORDS).to_pylist()[number]
    return Recording("", None, None, simulated_block(item["record"]), {}), corpus.simulated(item)[1].beats


@pytest.mark.parametrize("numbers", [(2, 21), (21, 8), (0, 13), (3, 53)])
def test_first_beats_coincide_whatever_the_heart_rates(numbers):
    """Tachycardia and bradycardia; bradycardia and normal; fibrillation and bigeminy; ST elevation and wide QRS."""
    (first, beats), (second, others) = map(drawn, numbers)
    shift = align((first, second), [find_beats_of(first), find_beats_of(second)])
    start, moved = (next(beat for beat in each if beat > 0.13) for each in (beats, others))
    assert moved + shift == pytest.approx(start, abs=0.06)


def test_a_recording_moved_by_less_than_a_beat_is_moved_back():
    recording, beats = drawn(8)
    moved = round((beats[0] - 0.25) * 500)
    later = replace(recording, block=replace(recording.block, signal=recording.block.signal[..., moved:]))
    assert align((recording, later), [find_beats_of(recording), find_beats_of(later)]) == pytest.approx(
        moved / 500, abs=0.011
    )
