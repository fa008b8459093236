"""Fixtures that several test files share."""

import os

# `pytest -n auto` runs a process per core: each, and what it starts, computes on one. Set before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """Lets one process run a folder of quick tests, so that what they share is made once.

    Slow tests go to whichever process is free: there are folders of which they take minutes.
    """
    if config.option.dist != "load" or config.option.markexpr != "not slow":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFolder(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "/".join(nodeid.partition("::")[0].split("/")[:2])  # of tests/FOLDER/..., or tests/FILE

    return ByFolder(config, log)


@pytest.fixture(scope="session", autouse=True)
def no_flushing():
    """Nobody waits until the disk has what a test writes: no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: None)
        yield


@pytest.fixture(scope="session")
def ecg_data() -> Path:
    """The folder of real sample recordings; tests that need it are marked `real_data` and skipped without it."""
    folder = Path(os.environ.get("MELP_ECG_DATA", REPO.parent / "shared" / "ecg"))
    if not folder.is_dir():
        pytest.skip(f"no sample recordings at {folder}; set MELP_ECG_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def formats_data() -> Path:
    """The folder of one ECG in every format; tests that need it are marked `real_data` and skipped without it."""
    folder = Path(os.environ.get("MELP_FORMATS_DATA", REPO.parent / "shared" / "formats"))
    if not folder.is_dir():
        pytest.skip(f"no sample files of the formats at {folder}; set MELP_FORMATS_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory) -> Path:
    """`model`, `encoder`, `other` (models), `data` (synthetic), `rhythm`: its recordings under PTB-XL's names."""
    import torch
    from tiny import RHYTHMS, relabel, tiny_model, tiny_processor

    from melp.prepare.folder import prepare

    root = tmp_path_factory.mktemp("evaluated")
    prepare("synthetic", root / "data", records=200)
    for name, seed in (("model", 0), ("other", 5)):
        model = tiny_model(seed).to(torch.bfloat16)
        model.save_pretrained(root / name)
        tiny_processor().save_pretrained(root / name)
    model.ecg_model.save_pretrained(root / "encoder")
    tiny_processor().feature_extractor.save_pretrained(root / "encoder")
    relabel(root / "data", root / "rhythm", lambda findings: [RHYTHMS[name] for name in findings if name in RHYTHMS])
    return root


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A prepared folder of 80 synthetic recordings."""
    from melp.prepare.folder import prepare

    return prepare("synthetic", tmp_path_factory.mktemp("data") / "corpus", records=80)


@pytest.fixture(scope="session")
def language(corpus, tmp_path_factory) -> Path:
    """A run of the language stage on `corpus`."""
    from tiny_runs import TINY_BERT

    from melp.training.stages.recipes import LanguageRecipe
    from train import train

    steps = {"max_steps": 12, "warmup_steps": 2, "log_every": 4, "eval_every": 6, "save_every": 6}
    return train(
        LanguageRecipe(
            data=str(corpus),
            output=str(tmp_path_factory.mktemp("language") / "run"),
            config=TINY_BERT,
            vocab_size=300,
            batch_size=8,
            learning_rate=1e-3,
            measure_peak=False,
            **steps,
        )
    )


@pytest.fixture(scope="session")
def zero_shot_output(evaluated, tmp_path_factory) -> Path:
    """The folder that `evaluate.py zero-shot --against other` left."""
    from evaluating import evaluate

    output = tmp_path_factory.mktemp("zero-shot")
    evaluate(evaluated, "zero-shot", "model", output, "--against", evaluated / "other")
    return output
