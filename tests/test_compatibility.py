"""MELP with what its users run beside transformers: pipelines, Trainer, PEFT, quantisation, ONNX."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import TINY_ECG, save_parts, tiny_batch, tiny_model, tiny_processor
from transformers import AutoModel, AutoModelForSequenceClassification, Trainer, TrainingArguments, pipeline

from configuration_melp import MelpEcgConfig
from modeling_melp import MelpEcgModel, MelpForEcgClassification, MelpModel
from processing_melp import LEADS


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A whole model, its ECG tower and a classifier over it, each with what prepares recordings."""
    root, model = tmp_path_factory.mktemp("compatibility"), tiny_model()
    classifier = MelpForEcgClassification(copy.deepcopy(model.ecg_model.config))
    classifier.ecg_model.load_state_dict(model.ecg_model.state_dict())
    save_parts(root, model, classifier)
    return root


def recordings(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 12, 5000)).astype(np.float32)


@pytest.mark.parametrize("name", ["whole", "tower", "classifier"])
def test_feature_extraction_pipeline(folders, name):
    ecgs, options = recordings(3), {"sampling_rate": 500, "leads": list(LEADS)}
    extract = pipeline("feature-extraction", model=str(folders / name), trust_remote_code=True, device="cpu")
    extracted = torch.stack(extract(list(ecgs), batch_size=2, return_tensors=True, **options))
    inputs = tiny_processor()(ecg=ecgs, return_tensors="pt", **options)
    with torch.no_grad():
        expected = MelpModel.from_pretrained(folders / "whole").get_ecg_features(**inputs).pooler_output
    torch.testing.assert_close(extracted, expected, atol=1e-5, rtol=1e-5)
    alone = extract(ecgs[0], **options)
    assert isinstance(alone, list) and alone == pytest.approx(expected[0].tolist(), abs=1e-5)
    with pytest.raises(ValueError, match="V9"):
        extract(ecgs[0], sampling_rate=500, leads=[*LEADS[:-1], "lead V9x"])


@pytest.mark.real_data
def test_pipeline_reads_a_recording(folders, ecg_data):
    extract = pipeline("feature-extraction", model=str(folders / "whole"), trust_remote_code=True, device="cpu")
    embedding = extract(str(ecg_data / "ptbxl" / "records500" / "00000" / "00001_hr"))
    assert np.linalg.norm(embedding) == pytest.approx(1.0, abs=1e-5) and len(embedding) == TINY_ECG["projection_dim"]


@pytest.mark.parametrize("name", ["whole", "tower", "classifier"])
def test_every_folder_opens_for_classification(folders, name):
    model = AutoModelForSequenceClassification.from_pretrained(
        folders / name, trust_remote_code=True, **({} if name == "classifier" else {"num_labels": 3})
    )
    assert type(model).__name__ == "MelpForEcgClassification"
    ecg = tiny_batch()["input_values"]
    tower = MelpEcgModel.from_pretrained(folders / "tower")
    with torch.no_grad():
        assert model(ecg).logits.shape == (len(ecg), 2 if name == "classifier" else 3)
        assert torch.equal(model.ecg_model(ecg).probe_embeds, tower(ecg).probe_embeds)


@pytest.mark.slow
def test_trainer_fits_a_classifier(tmp_path):
    """A finding that a mean shift of one lead gives away: Trainer's loss falls and its predictions rank it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (32, 1), generator=generator).float()
    ecgs = torch.rand(32, 12, 320, generator=generator)
    ecgs[:, 1] += 2 * labels * torch.linspace(0, 12, 320).sin()
    rows = [{"input_values": ecg, "labels": label} for ecg, label in zip(ecgs, labels, strict=True)]
    torch.manual_seed(0)
    model = MelpForEcgClassification(
        MelpEcgConfig(**TINY_ECG, num_labels=1, hidden_dropout=0.0, initializer_range=0.1)
    )
    arguments = TrainingArguments(
        str(tmp_path), max_steps=20, per_device_train_batch_size=16, learning_rate=3e-3, logging_steps=1,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 20 and np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    predicted = trainer.predict(rows)
    assert predicted.predictions.shape == (32, 1) and predicted.metrics["test_loss"] < np.mean(losses[:4])
    trainer.save_model(tmp_path / "saved")
    again = MelpForEcgClassification.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        np.testing.assert_allclose(again(ecgs).logits.numpy(), predicted.predictions, atol=1e-5)


@pytest.mark.slow
def test_trainer_fits_pairs_and_says_what_to_do_with_a_last_one(tmp_path):
    batch = tiny_batch("max_length")
    rows = [{name: value[index] for name, value in batch.items()} for index in range(3)]
    for drop_last in (True, False):
        arguments = TrainingArguments(
            str(tmp_path), num_train_epochs=2, per_device_train_batch_size=2, report_to=[], save_strategy="no",
            use_cpu=True, disable_tqdm=True, dataloader_drop_last=drop_last,
        )  # fmt: skip
        trainer = Trainer(tiny_model().train(), arguments, train_dataset=rows)
        if drop_last:
            assert trainer.train().global_step == 2
        else:
            with pytest.raises(ValueError, match="dataloader_drop_last=True"):
                trainer.train()


@pytest.mark.parametrize(
    "tower, targets", [("ecg", "ecg_model.*(q_proj|v_proj)"), ("text", "text_model.*(query|value)")]
)
def test_lora_on_either_tower(tmp_path, tower, targets):
    """One step of training, saved, loaded onto the base model, merged: the same outputs each time."""
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    model, batch = tiny_model(), tiny_batch()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        before = model(**batch).logits_per_ecg
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets))
    trained = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    assert trained and all("lora" in name and f"{tower}_model" in name for name in trained)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # B starts at zero: A learns from the second step on
        tuned(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    tuned.eval()
    with torch.no_grad():
        expected = tuned(**batch).logits_per_ecg
        assert not torch.allclose(expected, before, atol=1e-3)
        tuned.save_pretrained(tmp_path)
        fresh = tiny_model()
        fresh.load_state_dict(base)
        loaded = peft.PeftModel.from_pretrained(fresh, tmp_path).eval()
        torch.testing.assert_close(loaded(**batch).logits_per_ecg, expected, atol=1e-6, rtol=1e-6)
        merged = loaded.merge_and_unload()
        assert isinstance(merged, MelpModel) and merged.state_dict().keys() == base.keys()
        torch.testing.assert_close(merged(**batch).logits_per_ecg, expected, atol=1e-4, rtol=1e-4)


def test_eight_bit_weights(folders):
    """torchao's int8 weights through transformers' own quantiser, on a CPU."""
    pytest.importorskip("torchao", reason="torchao is not installed")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    batch = tiny_batch()
    config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["lm_head", "text_model.embeddings"])
    small = AutoModel.from_pretrained(
        folders / "whole", trust_remote_code=True, quantization_config=config, dtype=torch.float32
    ).eval()
    quantised = [name for name, value in small.named_parameters() if "Int8" in type(value.data).__name__]
    assert any(name.startswith("ecg_model.") for name in quantised)
    assert any(name.startswith("text_model.") for name in quantised)
    with torch.no_grad():
        expected, quantized = MelpModel.from_pretrained(folders / "whole")(**batch), small(**batch)
    for name in ("ecg_embeds", "text_embeds"):
        assert F.cosine_similarity(quantized[name], expected[name]).min() > 0.99
        assert not torch.equal(quantized[name], expected[name])


class ProbeAndRhythm(torch.nn.Module):
    def __init__(self, model: MelpEcgModel):
        super().__init__()
        self.model = model

    def forward(self, input_values: torch.Tensor):
        outputs = self.model(input_values)
        return outputs.rhythm_embeds, outputs.probe_embeds


@pytest.mark.slow
def test_onnx_export_of_the_ecg_tower(tmp_path):
    """Exported at batch 2, run by onnxruntime at others."""
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model = ProbeAndRhythm(tiny_model().ecg_model).eval()
    ecgs = torch.rand(5, 12, 1000, generator=torch.Generator().manual_seed(0))
    torch.onnx.export(
        model,
        (ecgs[:2],),
        tmp_path / "ecg.onnx",
        dynamo=True,
        input_names=["input_values"],
        output_names=["rhythm_embeds", "probe_embeds"],
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
    )
    session = onnxruntime.InferenceSession(tmp_path / "ecg.onnx", providers=["CPUExecutionProvider"])
    for batch in (ecgs, ecgs[:1]):
        with torch.no_grad():
            expected = model(batch)
        computed = session.run(["rhythm_embeds", "probe_embeds"], {"input_values": batch.numpy()})
        for one, other in zip(computed, expected, strict=True):
            np.testing.assert_allclose(one, other.numpy(), atol=1e-4, rtol=1e-4)
