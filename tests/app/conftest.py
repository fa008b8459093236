"""An app with a tiny model and an index, served on loopback to all tests of this folder."""

import time
import zipfile

import pytest
from ecg_files import aecg, counts, dicom, wfdb
from tiny import tiny_model, tiny_processor


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """`model`; `files`: a DICOM, an XML, a WFDB record; `index` of three WFDB records."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    import predict

    root = tmp_path_factory.mktemp("app")
    tiny_model().save_pretrained(root / "model")
    tiny_processor().save_pretrained(root / "model")
    (root / "files").mkdir()
    (root / "archive").mkdir()
    (root / "files" / "one.dcm").write_bytes(dicom(counts(5000)))
    (root / "files" / "two.xml").write_bytes(aecg(counts(5000, seed=1)))
    wfdb(root / "files", counts(5000, seed=2), "three")
    for number in range(3):
        wfdb(root / "archive", counts(5000, seed=3 + number), f"archived{number}")
    arguments = [root / "archive", "--model", root / "model", "--output", root / "index", "--embeddings"]
    predict.main([*map(str, arguments), "--num-workers", "0"])
    return root


@pytest.fixture(scope="session")
def served(root):
    """The app as `python app.py --model ... --index ...` serves it, with small limits."""
    from melp.app.engine import Settings
    from melp.app.limits import Limits
    from melp.app.run import serving

    limits = Limits(file_mb=2, upload_mb=3, files=20, unpacked_mb=4, seconds=60)
    with serving(Settings(str(root / "model"), root / "index", "cpu", limits), port=0) as served:
        yield served


@pytest.fixture(scope="session")
def client(served):
    """A client for tests that upload what they ask about: what it read before is no matter to them."""
    from asking import new_client

    return new_client(served)


@pytest.fixture
def uploads(monkeypatch, tmp_path):
    """Uploads with times of less than a millisecond."""
    from melp.app.limits import Limits
    from melp.app.uploads import Uploads

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    uploads = Uploads(Limits(keep_minutes=1e-9, batch_seconds=1e-9))
    yield uploads
    uploads.close()


@pytest.fixture
def files(root):
    folder = root / "files"
    return {
        "dicom": [folder / "one.dcm"],
        "xml": [folder / "two.xml"],
        "wfdb": [folder / "three.hea", folder / "three.dat"],
    }


@pytest.fixture
def slow_batch(served, files, tmp_path, monkeypatch):
    """A zip of eight recordings, each read in a second, and a check that its batch ended before all were."""
    with zipfile.ZipFile(tmp_path / "many.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(8):
            archive.write(files["xml"][0], f"{number}.xml")
    engine, read = served.app.engine, []
    recording = engine._recording

    def slow(item, name):
        read.append(name)
        time.sleep(1)
        return recording(item, name)

    def ended():
        ends = time.monotonic() + 120
        while list(served.app.uploads._requests.iterdir()):
            assert time.monotonic() < ends and len(read) < 8
            time.sleep(0.1)
        assert len(read) < 8

    monkeypatch.setattr(engine, "_recording", slow)
    return tmp_path / "many.zip", ended
