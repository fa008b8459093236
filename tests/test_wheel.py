"""The wheel of a clean copy, installed in a virtual environment, beside packages of common names."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

from signal_melp import LEADS

try:
    import tomllib
except ImportError:  # Python 3.10, where pytest brings its ancestor
    import tomli as tomllib

REPO = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def test_every_hub_file_is_packaged():
    settings = tomllib.loads((REPO / "pyproject.toml").read_text())
    assert settings["tool"]["setuptools"]["py-modules"] == sorted(path.stem for path in REPO.glob("*_melp.py"))


def run(*command, cwd: Path, **environment) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": "", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}"
    return done.stdout


def build(source: Path, target: Path) -> Path:
    """Builds the wheel of a folder with the setuptools at hand: no network is asked."""
    offline = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet")
    run(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", target, source, cwd=target.parent)
    return next(path for path in target.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Of the files that a clone of this working tree would have."""
    root = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=REPO, capture_output=True
    )
    if listed.returncode != 0:
        pytest.skip("this is no clone: git does not list its files")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (REPO / name).is_file() and not name.startswith("tests/"):
            (root / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "clone" / name).write_bytes((REPO / name).read_bytes())
    return build(root / "clone", root / "built")


def stand_in(name: str, root: Path) -> Path:
    """The wheel of a package with the name of a module that this repository once installed."""
    (root / name / name).mkdir(parents=True)
    (root / name / name / "__init__.py").write_text(f'WHOSE = "the {name} of somebody else"\n')
    (root / name / "pyproject.toml").write_text(f'[project]\nname = "{name}"\nversion = "1.0"\n')
    return build(root / name, root / f"{name}-built")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The Python of a new virtual environment, which sees this one's packages through a .pth file.

    Around the wheel, packages called `evaluate` and `databases`: the one installed before it, the other after it.
    """
    root = tmp_path_factory.mktemp("installed")
    venv.create(root / "venv", with_pip=False)
    python = root / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    places = run(sys.executable, "-c", "import site; print(*site.getsitepackages(), sep='\\n')", cwd=root)
    own = run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=root).strip()
    Path(own, "others.pth").write_text(places)
    for package in (stand_in("evaluate", root), wheel, stand_in("databases", root)):
        options = ("--no-deps", "--no-index", "--ignore-installed", "--quiet")
        run(sys.executable, "-m", "pip", "--python", python, "install", *options, package, cwd=root)
    return python


def test_its_top_level_is_melp_and_the_hub_files(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"melp", *(path.name for path in REPO.glob("*_melp.py"))}
    data = {path.relative_to(REPO).as_posix() for path in REPO.glob("melp/**/*.*") if "__pycache__" not in path.parts}
    assert data and data <= set(names)


def test_it_works_outside_the_clone(installed, tmp_path):
    """Prepares data, trains by a copy of `train.py` and a recipe, predicts, asks the Hub's command for help."""
    run(installed, "-m", "melp.prepare", "synthetic", "--records", "24", "--output", "data", cwd=tmp_path)
    (tmp_path / "train.py").write_bytes((REPO / "train.py").read_bytes())
    recipe = tmp_path / "elsewhere" / "small.yaml"
    recipe.parent.mkdir()
    recipe.write_text((REPO / "recipes" / "demo-ecg.yaml").read_text())
    options = ("--data", "data", "--output", "run", "--max-steps", "2", "--batch-size", "4", "--measure-peak", "false")
    run(installed, "train.py", recipe, *options, cwd=tmp_path)
    where = run(installed, "-c", "import melp, modeling_melp as m; print(melp.__file__, m.__file__)", cwd=tmp_path)
    assert where.splitlines()[-1].count("site-packages") == 2
    load = (
        "from transformers import AutoModel as A; print(type(A.from_pretrained('run/model', trust_remote_code=True)))"
    )
    assert "MelpEcgModel" in run(installed, "-c", load, cwd=tmp_path, HF_HOME=str(tmp_path / "home"))
    signal = np.random.default_rng(0).standard_normal((12, 5000)).cumsum(-1) / 50
    np.savez(tmp_path / "a.npz", signal=signal, leads=LEADS, sampling_rate=500, unit="mV")
    predict = ("-m", "melp.predict", "a.npz", "--model", "run/model", "--num-workers", "0")
    run(installed, *predict, "--output", "out", "--embeddings", cwd=tmp_path)
    assert "1 recordings were done before" in run(installed, *predict, "--output", "out", "--embeddings", cwd=tmp_path)
    assert "signal: 10 s, 500 Hz, 12 leads" in run(installed, *predict, cwd=tmp_path)
    assert "python -m melp.evaluation TASK" in run(installed, "-m", "melp.evaluation", "--help", cwd=tmp_path)
    assert "python -m melp.hub push" in run(installed, "-m", "melp.hub", "--help", cwd=tmp_path)


def test_it_lives_beside_packages_of_common_names(installed, tmp_path):
    for name in ("evaluate", "databases"):
        assert "somebody else" in run(
            installed, "-c", f"import melp.databases, {name}; print({name}.WHOSE)", cwd=tmp_path
        )
    listed = "from melp.databases import DATABASES; print(len(DATABASES))"
    assert int(run(installed, "-c", listed, cwd=tmp_path)) > 5
