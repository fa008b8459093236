"""`python app.py` writes a Space, names what is wrong with its options, and ends with all that it started."""

import os
import signal
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from melp.app.engine import device_of
from melp.notice import NOTICE

pytest.importorskip("gradio", reason="gradio is not installed")
ROOT = Path(__file__).resolve().parent.parent.parent


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
