"""A run beside its steps: choosing a model, noticing that it is sick, logs, pictures, batches."""

import dataclasses
import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset
from safetensors.torch import load_file
from tiny_runs import log, melp_recipe, weights

from melp.data.batches import StepBatches
from melp.evaluation.tasks.retrieval import DIRECTIONS, distinct_reports, rankings
from melp.names import report_hash
from melp.training.checkpoints import Progress
from melp.training.embeddings import embedding_metrics, recall
from melp.training.health import Collapse, GracefulStop, StepGuard
from melp.training.optim import parameter_groups, warmup_cosine
from melp.training.recipe import PACKAGES
from melp.training.stages.multiscale import MelpStage
from train import main, train


@pytest.fixture(scope="module")
def measured(corpus, language, tmp_path_factory) -> Path:
    """Three validations, the first the best by its recall; a tracker, pictures and the peak as well."""
    fields = {"eval_every": 2, "select_metric": "val_rankme", "tracker": "tensorboard", "keep_checkpoints": 1}
    more = {"sample_pictures": 1, "measure_peak": True, "save_every": 6}
    return train(melp_recipe(corpus, language, tmp_path_factory.mktemp("run") / "run", **(fields | more)))


def test_model_is_the_best_validation_and_its_checkpoint_stays(measured):
    validations = [line for line in log(measured) if "val_loss" in line]
    assert [line["step"] for line in validations] == [2, 4, 6]
    best = max(validations, key=lambda line: line["val_rankme"])
    chosen = json.loads((measured / "model" / "training.json").read_text())
    assert chosen == {"step": best["step"], "select_metric": "val_rankme", "value": best["val_rankme"]}
    kept = {path.name for path in (measured / "checkpoints").iterdir()}
    assert kept == {f"step-{best['step']}", "step-6"}
    stored = load_file(measured / "checkpoints" / f"step-{best['step']}" / "model.safetensors")
    saved = load_file(measured / "model" / "model.safetensors")
    assert torch.equal(saved["lm_head.weight"], stored["lm_head.weight"].to(torch.bfloat16))
    progress = json.loads((measured / "checkpoints" / "step-6" / "progress.json").read_text())
    assert [line["step"] for line in progress["validations"]] == [2, 4, 6]


def test_best_follows_the_metrics_direction():
    for metric, values, best in (
        ("val_loss", (math.nan, 3, 1, 2), 3),
        ("val_recall", (0.1, 0.3, 0.3), 2),
        ("val_code_perplexity", (2, 9, 4), 2),
        ("val_ecg_uniformity", (-1, -3, -2), 2),
        ("last", (1,), None),
    ):
        progress = Progress()
        for progress.step, value in enumerate(values, 1):
            progress.note({metric: value}, metric)
        assert progress.best_step == best


def test_log_says_how_the_run_is(measured):
    lines = [line for line in log(measured) if "loss" in line]
    for name in ("grad_norm", "logit_scale", "ecg_spread", "text_spread", "alignment", "learning_rate",
                 "rows_per_second", "share_of_peak", "peak_memory_gb"):  # fmt: skip
        assert all(line[name] > 0 for line in lines), name
    assert all(0 <= line["data_wait_share"] <= 1 and line["ecg_uniformity"] < 0 for line in lines)


def test_measuring_leaves_the_weights_as_they_are(measured, corpus, language, tmp_path):
    plain = train(melp_recipe(corpus, language, tmp_path / "run"))
    after = weights(plain)
    assert all(torch.equal(after[name], value) for name, value in weights(measured).items())


def test_pictures_and_tracker(measured):
    pictures = {path.name for path in (measured / "figures").iterdir()}
    assert pictures == {f"step-{step}-ecg-0.png" for step in (2, 4, 6)}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (measured / "melp").glob("events.*")
    read = EventAccumulator(str(events))
    read.Reload()
    assert "val_loss" in read.Tags()["scalars"] and "sample-ecg-0" in read.Tags()["images"]
    assert [event.value for event in read.Scalars("loss")] == pytest.approx(
        [line["loss"] for line in log(measured) if "loss" in line]
    )


def test_run_folder_alone_repeats_the_run(measured, corpus, tmp_path):
    options = ["--output", str(tmp_path / "again"), "--measure-peak", "false", "--sample-pictures", "0"]
    main([str(measured / "recipe.yaml"), *options])
    again = weights(tmp_path / "again")
    assert all(torch.equal(again[name], value) for name, value in weights(measured).items())
    run = json.loads((measured / "run.json").read_text())
    assert run["data"][0]["fingerprint"] == json.loads((corpus / "melp.json").read_text())["fingerprint"]
    (start,) = run["starts"]
    assert torch.__version__.startswith(start["versions"]["torch"])  # the package's version does not name its build
    assert start["processes"] == 1 and "git_revision" in start


def test_a_missing_tracker_is_an_error(corpus, language, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PACKAGES, "trackio", "trackio_absent")
    with pytest.raises(ValueError, match="pip install trackio_absent"):
        train(melp_recipe(corpus, language, tmp_path / "run", tracker="trackio"))
    with pytest.raises(SystemExit):
        main([str(language / "recipe.yaml"), "--tracker", "none"])
    assert re.search(r"invalid choice: 'none' \(choose from '?jsonl", capsys.readouterr().err)  # Pythons quote or not


def test_choosing_by_labels_is_said(corpus, language, tmp_path, capsys):
    fields = {"select_metric": "val_auroc", "max_steps": 2, "eval_every": 1, "save_every": 2}
    run = train(melp_recipe(corpus, language, tmp_path / "run", **fields))
    assert "labels of the validation split" in capsys.readouterr().out
    values = [line["val_auroc"] for line in log(run) if "val_auroc" in line]
    assert all(0 < value < 1 for value in values) and len(values) == 2
    assert json.loads((run / "model" / "training.json").read_text())["value"] == max(values)


# ---------------------------------------------------------------------------------------------------------- sickness


class SickStage(MelpStage):
    """A stage whose data break the loss at some steps."""

    sick_steps = (2,)
    step = 0

    def losses(self, batch):
        losses = super().losses(batch)
        if self.step in self.sick_steps:
            losses["loss"] = losses["loss"] * float("nan")
        self.step += 1
        return losses


@pytest.fixture
def sick(monkeypatch):
    monkeypatch.setattr("melp.training.stages.multiscale.MelpStage", SickStage)


def test_a_step_without_a_finite_loss_is_left_out(sick, corpus, language, tmp_path):
    fields = {"max_steps": 4, "save_every": 1, "keep_checkpoints": 9, "select_metric": "last"}
    run = train(melp_recipe(corpus, language, tmp_path / "run", **fields))
    after = [load_file(run / "checkpoints" / f"step-{step}" / "model.safetensors") for step in (2, 3, 4)]
    assert all(torch.equal(after[0][name], value) for name, value in after[1].items())
    assert not torch.equal(after[1]["lm_head.weight"], after[2]["lm_head.weight"])
    assert all(torch.isfinite(value).all() for value in after[2].values())
    lines = log(run)
    assert [line["skipped_steps"] for line in lines if "loss" in line] == [0, 0, 1, 1]
    assert next(line for line in lines if line["step"] == 3 and "loss" in line)["loss"] is None
    assert any("left out" in line.get("warning", "") for line in lines)
    (named,) = map(json.loads, (run / "skipped.jsonl").read_text().splitlines())
    assert named["step"] == 3 and len(named["records"]) == 8 and all(isinstance(r, str) for r in named["records"])


class ScaledOnCpu(Accelerator):
    """fp16 as on a GPU: Accelerate scales no gradients on a CPU, where torch could."""

    def __init__(self, **options):
        super().__init__(**options)
        self.scaler, self.native_amp = torch.amp.GradScaler("cpu", init_scale=2.0**12), True


@pytest.fixture
def fp16(monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision
    monkeypatch.setattr("melp.training.run.Accelerator", ScaledOnCpu)
    yield {"mixed_precision": "fp16", "select_metric": "last"}
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
def test_overflow_under_fp16_is_the_scalers_to_skip(fp16, corpus, language, tmp_path):
    """Steps that overflow at too high a scale change nothing and count as nothing; a checkpoint holds the scale."""
    fields = fp16 | {"max_steps": 10, "save_every": 1, "keep_checkpoints": 10, "eval_every": 10}
    recipe = melp_recipe(corpus, language, tmp_path / "run", **fields)
    run = train(recipe)
    lines = [line for line in log(run) if "loss" in line]
    scales = [line["loss_scale"] for line in lines]
    assert scales[:2] == [2.0**11, 2.0**10]
    assert all(line["skipped_steps"] == 0 for line in lines) and not (run / "skipped.jsonl").exists()
    after = [load_file(run / "checkpoints" / f"step-{step}" / "model.safetensors") for step in (1, 2, 10)]
    assert all(torch.equal(after[0][name], value) for name, value in after[1].items())
    assert not torch.equal(after[1]["lm_head.weight"], after[2]["lm_head.weight"])
    for step in range(6, 11):
        shutil.rmtree(run / "checkpoints" / f"step-{step}")
    recipe.resume = "auto"
    train(recipe)
    again = weights(run)
    assert all(torch.equal(again[name], value) for name, value in after[2].items())
    assert [line["loss_scale"] for line in log(run) if "loss" in line] == scales


@pytest.mark.slow
def test_a_sick_step_under_fp16_is_left_out_and_counted(fp16, sick, corpus, language, tmp_path):
    run = train(melp_recipe(corpus, language, tmp_path / "run", **(fp16 | {"max_steps": 4, "save_every": 1})))
    assert [line["skipped_steps"] for line in log(run) if "loss" in line] == [0, 0, 1, 1]
    (named,) = map(json.loads, (run / "skipped.jsonl").read_text().splitlines())
    assert named["step"] == 3


def test_gradients_that_no_scale_makes_finite_are_counted():
    accelerator = Accelerator(cpu=True)
    guard = StepGuard(accelerator, SimpleNamespace(optimizer=SimpleNamespace()), GracefulStop())
    for accelerator.scaler, skipped in ((torch.amp.GradScaler("cpu", init_scale=s), s <= 1) for s in (4.0, 1.0)):
        guard.check(7, torch.tensor(1.0), torch.tensor(float("inf")))
        guard.check(8, torch.tensor(math.nan), torch.tensor(1.0))  # the scaler takes this step
        assert guard.settle(all_steps=True)[0] == [7] * skipped


def test_fp16_without_a_gpu_is_refused(corpus, language, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        train(melp_recipe(corpus, language, tmp_path / "run", mixed_precision="fp16"))
    AcceleratorState._reset_state(reset_partial_state=True)


def test_too_many_of_them_stop_the_run(sick, monkeypatch, corpus, language, tmp_path):
    monkeypatch.setattr(SickStage, "sick_steps", range(100))
    with pytest.raises(ValueError, match="skipped.jsonl names their records"):
        train(melp_recipe(corpus, language, tmp_path / "run", max_skipped_steps=2, max_steps=50))
    assert len((tmp_path / "run" / "skipped.jsonl").read_text().splitlines()) == 3


def test_collapse_is_warned_of_once_with_what_to_change():
    healthy = {"contrastive_loss": 1.0, "chance_loss": math.log(64), "ecg_spread": 0.5, "text_spread": 0.5}
    healthy |= {"logit_scale": 20.0, "max_logit_scale": 100.0}
    sick = healthy | {"contrastive_loss": math.log(64) + 0.001}
    watch = Collapse(warmup_steps=100)
    assert not any(watch.warnings(step, sick) for step in range(0, 101, 10))
    texts = [text for step in range(110, 300, 10) for text in watch.warnings(step, sick)]
    assert len(texts) == 1 and "--warmup-steps" in texts[0]
    for name, value in (("ecg_spread", 0.01), ("text_spread", 0.01), ("logit_scale", 100.0)):
        watch = Collapse(warmup_steps=0)
        assert len([t for step in range(1, 9) for t in watch.warnings(step, healthy | {name: value})]) == 1
    assert not any(Collapse(0).warnings(step, healthy) for step in range(9))
    assert not any(Collapse(0).warnings(step, {"loss": 1.0}) for step in range(9))


def test_a_folder_that_cannot_hold_checkpoints_is_found_before_the_first_step(corpus, language, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written .* choose another --output"):
        train(melp_recipe(corpus, language, tmp_path / "file" / "run"))
    with pytest.raises(ValueError, match="GB for checkpoints and has"):
        train(melp_recipe(corpus, language, tmp_path / "run", keep_checkpoints=10**12))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_dry_run_says_what_a_run_takes_and_writes_nothing(corpus, language, tmp_path, capsys):
    fields = melp_recipe(corpus, language, tmp_path / "run", accumulation_steps=2, batch_size=4)
    train(fields, dry_run=True)
    printed = capsys.readouterr().out
    assert "8 rows per step in 2 micro-batches" in printed and " h, from two steps" in printed
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------------------------------------------- options


def test_decay_of_matrices_only_leaves_out_norms_biases_scales_and_embeddings(corpus, language, tmp_path):
    model = MelpStage(melp_recipe(corpus, language, tmp_path), Accelerator(cpu=True)).model
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.2, True, lambda name: 1.0)
    decayed, free = ({names[id(p)] for p in group["params"]} for group in groups)
    assert {"lm_head.weight", "ecg_model.feature_extractor.layers.0.conv.weight"} <= decayed
    assert {"logit_scale", "ecg_model.beat_pooler.query", "text_model.embeddings.word_embeddings.weight"} <= free
    assert all(name in free for name in names.values() if name.endswith(".bias") and "layer.0." not in name)
    assert any(name.endswith("original1") for name in decayed) and any(name.endswith("original0") for name in free)
    (group,) = parameter_groups(model, 0.2, False, lambda name: 1.0)
    assert group["weight_decay"] == 0.2 and len(group["params"]) == len(decayed) + len(free)


def test_learning_rate_warms_up_and_decays():
    rates = [warmup_cosine(step, 10, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0 and rates[60] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0.0) and max(rates) == 1.0


def test_sigmoid_run_saves_the_same_weights_and_goes_on_with_its_bias(measured, corpus, language, tmp_path):
    fields = {"max_steps": 2, "eval_every": 2, "save_every": 2, "contrastive": "sigmoid"}
    first = train(melp_recipe(corpus, language, tmp_path / "first", **fields))
    saved = load_file(first / "model" / "model.safetensors")
    assert saved.keys() == load_file(measured / "model" / "model.safetensors").keys()
    bias = json.loads((first / "model" / "training.json").read_text())["logit_bias"]
    assert bias != -10.0 and abs(bias + 10.0) < 0.1
    on = melp_recipe(corpus, language, tmp_path / "on", **fields, model=str(first / "model"))
    on.text_model, on.config = None, {}
    assert MelpStage(on, Accelerator(cpu=True)).model.logit_bias.item() == pytest.approx(bias)


def test_reports_that_say_the_same_share_an_id():
    same = ["sinus rhythm. normal ecg.", "Normal ECG.  Sinus rhythm", "sinus rhythm; normal ecg"]
    assert report_hash(same[0]) == report_hash(same[1])
    assert len({report_hash(report) for report in ("sinus rhythm.", "sinus bradycardia.", *same[:2])}) == 3


def rows_of_lengths(count: int) -> tuple[Dataset, list[int]]:
    lengths = torch.randint(3, 60, (count,), generator=torch.Generator().manual_seed(0)).tolist()
    return Dataset.from_dict({"row": list(range(count)), "length": lengths}), lengths


def test_bucketed_batches_pad_less_and_stay_the_same_for_any_number_of_processes():
    rows, lengths = rows_of_lengths(1003)

    def collate(rows):
        return {"rows": [row["row"] for row in rows], "width": max(row["length"] for row in rows)}

    def batches(**options):
        return StepBatches(rows, collate, seed=1, **options)

    plain, bucketed = batches(batch_size=16), batches(batch_size=16, lengths=lengths)
    padded = {name: sum(16 * each[step][0]["width"] for step in range(62)) for name, each in
              (("plain", plain), ("bucketed", bucketed))}  # fmt: skip
    assert padded["bucketed"] < 0.75 * padded["plain"]
    seen = Counter(row for step in range(62) for row in bucketed[step][0]["rows"])
    assert len(seen) == 62 * 16 and set(seen.values()) == {1}  # an epoch's rest is left to the next order
    two = [batches(batch_size=8, lengths=lengths, rank=rank, world=2) for rank in (0, 1)]
    micro = batches(batch_size=4, accumulation_steps=4, lengths=lengths)
    for step in (0, 5, 61, 62, 100):
        whole = bucketed[step][0]["rows"]
        assert [row for each in two for row in each[step][0]["rows"]] == whole == two[0].global_indices(step)
        assert [row for part in micro[step] for row in part["rows"]] == whole and len(micro[step]) == 4


def test_embedding_metrics():
    point, ring = F.normalize(torch.ones(6, 4), dim=-1), torch.eye(4).repeat(2, 1)
    collapsed, spread = embedding_metrics(point, point), embedding_metrics(ring, ring)
    assert collapsed["ecg_spread"] == pytest.approx(0, abs=1e-3) and collapsed["ecg_uniformity"] == pytest.approx(0)
    assert spread["text_spread"] == pytest.approx(math.sqrt(0.75)) and spread["alignment"] == 0
    expected = math.log((2 * 1 + 6 * math.exp(-4)) / 8)  # two of eight are itself, six at squared distance 2
    assert spread["ecg_uniformity"] == pytest.approx(expected, rel=1e-4)
    ids = torch.tensor([0, 1, 2, 3] * 2)
    assert recall(ring, ring, ids) == 1.0 and recall(ring, ring.roll(1, 0), ids) == 0.0


def test_recall_is_that_of_the_retrieval_task():
    """Also where reports say the same in another order of sentences, which are embedded differently."""
    torch.manual_seed(0)
    reports = ["sinus rhythm. normal ecg.", "normal ecg. sinus rhythm.", "paced.", "sinus rhythm.", "PACED"] * 8
    ecg, text = (F.normalize(torch.randn(len(reports), 6), dim=-1) for _ in range(2))
    _, index = distinct_reports(reports)
    texts = text[[index.tolist().index(number) for number in range(3)]]
    ranked = rankings(ecg.numpy(), texts.numpy(), index)
    expected = [ranked[direction]["identical"].within(1).mean() for direction in DIRECTIONS]
    ids = torch.tensor([report_hash(report) for report in reports])
    assert recall(ecg, text, ids) == pytest.approx(sum(expected) / 2) and 0 < expected[0] < 1


def test_a_resumed_run_warns_of_collapse_when_the_uninterrupted_one_would():
    sick = {"contrastive_loss": math.log(64), "chance_loss": math.log(64)}
    whole = Collapse(warmup_steps=0)
    expected = [(step, text) for step in range(1, 12) for text in whole.warnings(step, sick)]
    for stop in range(1, 11):
        progress, warned = Progress(), []
        for steps in (range(1, stop), range(stop, 12)):
            watch = Collapse(0, progress.collapse)
            warned += [(step, text) for step in steps for text in watch.warnings(step, sick)]
            progress = Progress(**json.loads(json.dumps(dataclasses.asdict(progress))))
        assert warned == expected and len(warned) == 1


def test_every_held_out_row_counts_once(corpus, language, tmp_path):
    stage = MelpStage(melp_recipe(corpus, language, tmp_path, batch_size=4), Accelerator(cpu=True))
    rows = len(stage.held_out)
    for size in range(2, rows + 1):
        batches = stage.held_out_batches(size)
        assert [row for batch in batches for row in batch] == list(range(rows)) and min(map(len, batches)) > 1
    lengths = iter(range(100))
    weighted = stage.mean_over_batches(lambda batch: {"loss": torch.tensor(float(next(lengths)))}, 4)
    sizes = [len(batch) for batch in stage.held_out_batches(4)]
    assert weighted["val_loss"] == pytest.approx(sum(i * n for i, n in enumerate(sizes)) / rows)
