"""The notebook runs from its first cell to the picture."""

import json
import os
import sys
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_processor

REPO = Path(__file__).resolve().parent.parent
NOTEBOOK = REPO / "examples" / "notebook.ipynb"

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")


def run(folder: Path, monkeypatch, recording: str = "") -> tuple[str, list[str]]:
    """Runs the notebook in a folder, with a model whose weights are drawn; returns its text and kinds of outputs."""
    tiny_model().save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    settings = {
        "MELP_MODEL": "model",
        "MELP_RECORDING": recording,
        "PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")]),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "JUPYTER_PLATFORM_DIRS": "1",
        "IPYTHONDIR": str(folder / "ipython"),
        "HF_HOME": str(folder / "home"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    kernels = folder / "jupyter" / "kernels" / "this"
    kernels.mkdir(parents=True)
    arguments = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernels / "kernel.json").write_text(json.dumps({"argv": arguments, "display_name": "this", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="this", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)
    return printed, [kind for output in outputs for kind in output.get("data", {})]


@pytest.mark.slow
def test_a_simulated_recording(tmp_path, monkeypatch):
    printed, kinds = run(tmp_path, monkeypatch)
    assert "simulated with: " in printed and "torch.Size([16])" in printed and "atrial fibrillation" in printed
    assert "image/png" in kinds and (tmp_path / "evidence.png").stat().st_size > 10_000
    assert (tmp_path / "simulated.hea").exists()


@pytest.mark.slow
@pytest.mark.real_data
def test_a_recording_of_ones_own(tmp_path, monkeypatch, ecg_data):
    recording = str(ecg_data / "ptbxl" / "records500" / "00000" / "00001_hr")
    printed, kinds = run(tmp_path, monkeypatch, recording)
    assert "simulated with" not in printed and "image/png" in kinds


def test_it_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


@pytest.mark.parametrize("opened_in, model", [("examples", ".."), (".", "runs/demo/model")])
def test_without_a_setting_it_takes_the_clone_it_lies_in(tmp_path, monkeypatch, opened_in, model):
    (tmp_path / "examples").mkdir()
    (tmp_path / "config.json").touch()
    monkeypatch.chdir(tmp_path / opened_in)
    monkeypatch.delenv("MELP_MODEL", raising=False)
    settings = next(cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if "MODEL = " in cell.source)
    names: dict = {}
    exec(settings, names)
    assert names["MODEL"] == model
