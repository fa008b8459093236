"""Fine-tuning: rates of the layers, and the model that is saved."""

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from evaluating import assert_compared, run
from tiny import RHYTHMS, tiny_processor
from transformers import AutoModelForSequenceClassification

from melp.data.batches import MelpCollator, prepare_inputs
from melp.data.prepared import load_prepared
from melp.evaluation.tasks.finetune import new_model, parameter_groups


def test_layers_further_down_learn_more_slowly(evaluated):
    model = new_model(str(evaluated / "model"), ["a", "b"], pretrained=True, seed=0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rate = {
        names[id(parameter)]: group["lr"]
        for group in parameter_groups(model, 1.0, 0.5, 0.1)
        for parameter in group["params"]
    }
    assert rate["classifier.weight"] == 1 and rate["ecg_model.beat_pooler.query"] == 0.5
    assert rate["ecg_model.encoder.layers.1.mlp.fc1.weight"] == 0.25
    assert rate["ecg_model.encoder.layers.0.mlp.fc1.weight"] == 0.125
    assert (
        rate["ecg_model.feature_projection.projection.weight"] == rate["ecg_model.encoder.layer_norm.bias"] == 0.0625
    )
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == set(rate) and not any("token_pooler" in name for name in trained)


@pytest.mark.slow
def test_finetuned_model_gives_the_saved_predictions(evaluated, tmp_path):
    splits = load_prepared(evaluated / "rhythm")
    few = DatasetDict({**splits, "train": splits["train"].select(range(32))})
    few.save_to_disk(str(tmp_path / "few"))
    options = ["--epochs", "1", "--train-batch-size", "16"]
    against = ["--against", str(evaluated / "other")]
    results, predictions = run(evaluated, tmp_path, "finetune", *options, *against, data=(tmp_path / "few",))
    model = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out" / "model", trust_remote_code=True
    ).eval()
    assert list(model.config.id2label.values()) == sorted(RHYTHMS.values())
    rows = splits["test"]
    batch = MelpCollator(tiny_processor(), text=False)(list(rows.select(range(2))))
    with torch.inference_mode():
        logits = model(**prepare_inputs(batch, "cpu", model.config.scaling)).logits
    saved = predictions["score"].to_numpy().reshape(len(rows), -1)[:2]
    np.testing.assert_allclose(logits.sigmoid().numpy(), saved, atol=1e-5)
    assert_compared(results, predictions, "macro_auroc", "macro_auroc", "AUROC")
    assert "macro_auroc_from_scratch" in results["metrics"]
    with pytest.raises(SystemExit, match="not finite"):
        run(evaluated, tmp_path, "finetune", *options, "--learning-rate", "1e30", data=(tmp_path / "few",))
