"""Uploads are their visitor's alone, come together as recordings, stay in their folder, and end after their time."""

import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from asking import left_behind, uploaded

from melp.app.limits import Limits, Refusal


def test_uploads_do_not_fill_the_disk(served, monkeypatch):
    monkeypatch.setattr("melp.app.uploads.shutil.disk_usage", lambda _: SimpleNamespace(total=2**40, free=2**20))
    answer = httpx.post(f"{served.url}gradio_api/upload", files={"files": b"1,2"})
    assert answer.status_code == 507 and "no room" in answer.text and not left_behind(served)


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "model.safetensors", "a\0b"])
def test_a_client_gets_none_but_uploaded_files(served, root, path):
    for place in (path, str(root / "model" / "config.json")):
        with pytest.raises(Refusal, match="upload"), served.app.uploads.take([{"path": place}]):
            pass


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
