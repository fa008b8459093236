"""Both towers as ONNX: the same numbers at other batch sizes and lengths of texts, smaller in 8 bits."""

import logging

import numpy as np
import pytest
import torch
from tiny import REPORTS, tiny_batch, tiny_model, tiny_processor

from melp.export.__main__ import main
from melp.export.onnx import EcgTower, TextTower
from modeling_melp import MelpModel

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package} is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("export") / "model"
    tiny_model().save_pretrained(root)
    tiny_processor().save_pretrained(root)
    return root


@pytest.fixture(scope="module")
def exported(folder):
    from melp.export.onnx import export

    levels = [logging.getLogger(name).level for name in (None, "onnxscript")]
    lines = list(export(str(folder), folder / "onnx", int8=True))
    # Warnings of whatever runs later in the process are heard as before.
    assert [logging.getLogger(name).level for name in (None, "onnxscript")] == levels
    return folder / "onnx", "\n".join(lines)


def run(path, outputs, **feed) -> list[np.ndarray]:
    from melp.export.onnx import open_session

    return open_session(path).run(outputs, {name: value.numpy() for name, value in feed.items()})


@torch.no_grad()
def test_the_towers_give_the_embeddings_of_the_model():
    """What is exported, before it is."""
    model, batch = tiny_model(), tiny_batch()
    ecg, text = EcgTower(model), TextTower(model)
    outputs = model.ecg_model(batch["input_values"])
    for computed in (ecg, EcgTower(model.ecg_model)):
        embeds, probe = computed(batch["input_values"])
        torch.testing.assert_close(embeds, model.get_ecg_features(batch["input_values"]).pooler_output)
        torch.testing.assert_close(probe, outputs.probe_embeds)
    (embeds,) = text(batch["input_ids"], batch["attention_mask"])
    expected = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
    torch.testing.assert_close(embeds, expected)
    assert (len(ecg.outputs), len(text.outputs)) == (2, 1)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_the_ecg_tower_at_other_batch_sizes(folder, exported, count):
    ecg = tiny_batch(samples=5000)["input_values"][:count]
    with torch.no_grad():
        model = MelpModel.from_pretrained(folder)
        expected = model.get_ecg_features(ecg).pooler_output, model.ecg_model(ecg).probe_embeds
    computed = run(exported[0] / "ecg_model.onnx", ["ecg_embeds", "probe_embeds"], input_values=ecg)
    for one, other in zip(computed, expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("texts", [REPORTS[:1], REPORTS[:3], ["sinus rhythm."] * 4])
def test_the_text_tower_at_other_lengths(folder, exported, texts):
    inputs = tiny_processor()(text=texts, return_tensors="pt")
    feed = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = MelpModel.from_pretrained(folder).get_text_features(**feed).pooler_output
    (computed,) = run(exported[0] / "text_model.onnx", ["text_embeds"], **feed)
    np.testing.assert_allclose(computed, expected.numpy(), atol=1e-4)


@pytest.mark.slow
def test_eight_bits_are_smaller_and_close(exported):
    for name in ("ecg_model", "text_model"):
        small, whole = exported[0] / f"{name}_int8.onnx", exported[0] / f"{name}.onnx"
        assert small.stat().st_size < 0.85 * whole.stat().st_size
    ecg = tiny_batch(samples=5000)["input_values"]
    (small,), (whole,) = (
        run(exported[0] / f"ecg_model{kind}.onnx", ["ecg_embeds"], input_values=ecg) for kind in ("_int8", "")
    )
    assert (small * whole).sum(-1).min() > 0.99 and not np.array_equal(small, whole)


@pytest.mark.slow
def test_what_is_printed(exported):
    printed = exported[1]
    assert "16 simulated recordings and 6 texts" in printed
    for name in ("ecg_model.onnx", "ecg_model_int8.onnx", "text_model.onnx", "text_model_int8.onnx"):
        assert f"| {name} |" in printed
    assert "largest difference" in printed and "rank correlation" in printed


@pytest.mark.real_data
@pytest.mark.slow
def test_it_is_compared_on_recordings_that_are_named(folder, tmp_path, capsys, ecg_data):
    paths = [str(ecg_data / "ptbxl" / "records500" / "00000" / f"0000{number}_hr") for number in (1, 2, 3)]
    main([str(folder), "--output", str(tmp_path / "onnx"), "--recordings", *paths])
    assert "on 3 recordings and" in capsys.readouterr().out


def test_other_files_are_not_touched(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="holds other files"):
        main([str(folder), "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="neither on this disk"):
        main(["./nowhere", "--output", str(tmp_path / "onnx")])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
