"""The tasks of evaluate.py beside classification: correspondences, findings, retrieval, identification, drafts."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from datasets import DatasetDict
from tiny import RHYTHMS, tiny_model, tiny_processor
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from evaluate import main
from melp.data.batches import MelpCollator, prepare_inputs
from melp.data.prepared import label_matrix, label_sets, load_prepared
from melp.databases.code15 import CLASSES as CODE15
from melp.databases.published import read_tables
from melp.databases.snomed import CHALLENGE
from melp.evaluation.correspondences import GROUPS, correspondences, group_of, labels_of, shared_findings
from melp.evaluation.folders import SHARED, load_folders
from melp.evaluation.prompts import PROMPTS, load_prompts
from melp.evaluation.ranking import rank
from melp.evaluation.report_findings import PHRASES, extract, stated_findings
from melp.evaluation.tasks import identify, report, retrieval
from melp.evaluation.tasks.finetune import new_model, parameter_groups
from melp.synthetic import corpus as synthetic
from melp.synthetic import reports as wording

FINDINGS = synthetic.TEXTBOOK


def run(evaluated, tmp_path, task, *more, data=("data",)):
    folder = tmp_path / "out"
    paths = [str(evaluated / name) for name in data]
    common = ["--model", str(evaluated / "model"), "--output", str(folder), "--cache", "none", "--samples", "20"]
    main([task, "--data", *paths, *common, *more])
    return json.loads((folder / "results.json").read_text()), pd.read_parquet(folder / "predictions.parquet")


def assert_compared(results, predictions, metric: str, less: str, figure: str):
    """A figure of each model, their paired difference, the profile and both models' scores are there."""
    metrics = results["metrics"]
    difference = metrics[f"{less}_less_other"]
    assert difference["value"] == pytest.approx(metrics[metric]["value"] - metrics[f"{metric}_other"]["value"])
    assert difference["holds"] == (difference["low"] > 0 or difference["high"] < 0)
    assert {"model", "other"} <= set(results["profile"]) and results["profile_metric"] == figure
    assert {"score", "score_other"} <= set(predictions) and results["fingerprints"]["against"]["other"]


# ------------------------------------------------------------------------------------------------- labels and prompts


def published_classes(ecg_data) -> dict[str, list[str]]:
    statements = pd.read_csv(ecg_data / "ptbxl" / "scp_statements.csv", index_col=0).index.str.strip("_")
    classes = {"code15": CODE15, "challenge": sorted(set(CHALLENGE.values())), "findings": FINDINGS}
    classes["all"] = list(statements)
    for database in ("ptbxl", "cpsc2018", "csn"):
        classes |= read_tables(ecg_data / "splits", database)[1]
    return classes | {"csn-fixed": classes["csn"]}


@pytest.mark.real_data
def test_every_label_of_the_benchmark_has_a_group_and_prompts(ecg_data):
    sets = published_classes(ecg_data)
    counts = {"superclass": 5, "subclass": 23, "form": 19, "rhythm": 12, "cpsc2018": 9, "csn": 38}
    assert {name: len(sets[name]) for name in counts} == counts
    for label_set, classes in sets.items():
        assert set(load_prompts(PROMPTS, label_set, classes)) == set(classes)
        assert {group_of(label_set, label) for label in classes} <= set(GROUPS)


@pytest.mark.real_data
def test_codes_and_statements_of_the_same_recordings_correspond(ecg_data):
    """PTB-XL's recordings carry statements in its own tables and SNOMED codes in the Challenge's headers."""
    table = pd.read_csv(ecg_data / "ptbxl" / "records_06000_labels.csv").set_index("ecg_id")
    names = yaml.safe_load((PROMPTS.parent / "labels.yaml").read_text())
    checked = 0
    for header in sorted((ecg_data / "cinc2021" / "ptb-xl" / "g1").glob("*.hea")):
        codes = header.read_text().split("Dx:")[1].split("\n")[0].strip().split(",")
        row = " ".join(str(cell) for cell in table.loc[int(header.stem[2:])])
        for entry in names.values():
            if not isinstance(entry.get("scp"), str) or "snomed" not in entry or f"'{entry['scp']}'" not in row:
                continue
            snomed = entry["snomed"] if isinstance(entry["snomed"], list) else [entry["snomed"]]
            assert {str(code) for code in snomed} & set(codes), (header.stem, entry)
            checked += 1
    assert checked >= 8


def test_the_same_letters_do_not_mean_the_same_finding():
    csn, code15 = ["AF", "AFIB", "ST", "STE"], ["AF", "ST"]
    shared = shared_findings(("csn", csn), ("code15", code15))
    assert shared == {"sinus tachycardia": (["ST"], ["ST"]), "atrial fibrillation": (["AFIB"], ["AF"])}
    assert "st elevation" not in shared_findings(("csn", csn), ("cpsc2018", ["STE", "AFIB"]))
    assert shared_findings(("csn-fixed", csn), ("findings", FINDINGS))["atrial flutter"] == (
        ["AF"],
        ["atrial flutter"],
    )


def test_a_gathering_label_is_opposite_all_that_it_gathers():
    shared = shared_findings(("superclass", ["CD", "NORM"]), ("code15", CODE15))
    assert shared == {"conduction disturbance": (["CD"], ["1dAVb", "LBBB", "RBBB"])}
    # Between two sets of single findings it has no place.
    assert "conduction disturbance" not in shared_findings(("findings", FINDINGS), ("code15", CODE15))
    assert shared_findings(("mine", ["a", "b"]), ("theirs", ["b", "c"])) == {"b": (["b"], ["b"])}
    assert labels_of("atrial fibrillation", "snomed", ["atrial fibrillation"]) == ["atrial fibrillation"]


def test_prompt_files_in_json_need_no_label_sets_and_no_lists(tmp_path):
    flat = tmp_path / "flat.json"
    flat.write_text(json.dumps({"AFIB": "atrial fibrillation, irregular", "SR": ["sinus rhythm", "normal rate"]}))
    assert load_prompts(flat, "rhythm", ["SR", "AFIB"]) == {
        "SR": ["sinus rhythm", "normal rate"],
        "AFIB": ["atrial fibrillation, irregular"],
    }
    with pytest.raises(ValueError, match="no prompt for PACE"):
        load_prompts(flat, "rhythm", ["SR", "PACE"])


def test_a_class_takes_its_prompts_from_another_label_set_that_means_the_same():
    prompts = yaml.safe_load(PROMPTS.read_text())
    taken = load_prompts(PROMPTS, "all", ["AFIB", "IMI", "ASMI", "QWAVE"])
    assert list(taken.values()) == [
        prompts[label_set][name]
        for label_set, name in (("rhythm", "AFIB"), ("subclass", "IMI"), ("scp", "ASMI"), ("form", "QWAVE"))
    ]
    # A user's own label set: AF is flutter in csn and fibrillation in code15, so it stands for neither.
    with pytest.raises(ValueError, match=r"no prompt for AF, unheard of \(label set 'mine'\)"):
        load_prompts(PROMPTS, "mine", ["AF", "unheard of", "atrial fibrillation"])


def test_several_folders_are_measured_as_one_over_what_they_share(evaluated, tmp_path):
    """The same recordings under two label sets: twice as many, each finding's positives twice."""
    folders = [str(evaluated / name) for name in ("data", "rhythm")]
    both, one = load_folders(folders), load_folders(folders[:1])
    assert both["test"].num_rows == 2 * one["test"].num_rows
    assert label_sets(both["test"]) == {SHARED: list(RHYTHMS)}
    targets, _ = label_matrix(both["test"], SHARED)
    alone, _ = label_matrix(one["test"], "findings")
    columns = [FINDINGS.index(name) for name in RHYTHMS]
    np.testing.assert_array_equal(targets, np.concatenate([alone[:, columns]] * 2))
    assert not set(both["test"]["patient"]) & set(both["train"]["patient"])
    assert len(set(both["test"]["patient"])) == 2 * len(set(one["test"]["patient"]))
    results, predictions = run(evaluated, tmp_path, "zero-shot", "--split", "all", data=("data", "rhythm"))
    assert results["records"] == 400 and predictions["label"].unique().tolist() == list(RHYTHMS)
    assert all(row["threshold"] is None for row in results["classes"])  # nothing was held out
    with pytest.raises(SystemExit, match="as many names in --label-set"):
        run(evaluated, tmp_path, "zero-shot", "--label-set", "findings", data=("data", "rhythm"))
    with pytest.raises(SystemExit, match="fitted on"):
        run(evaluated, tmp_path, "linear-probe", "--split", "all", data=("data", "rhythm"))


# ----------------------------------------------------------------------------------------------------------- findings


@pytest.mark.parametrize(
    "text, stated",
    [
        ("sinus rhythm. no st elevation.", {"sinus rhythm"}),
        ("sinus rhythm with no st elevation, t wave inversion in v1", {"sinus rhythm", "t wave inversion"}),
        ("no st elevation, t wave inversion or q waves. lbbb", {"left bundle branch block"}),
        ("no st elevation, t wave inversion in v1 or v2", {"t wave inversion"}),
        ("no st elevation but t wave inversion", {"t wave inversion"}),
        ("st depression without t wave inversion", {"st depression"}),
        ("no evidence of atrial fibrillation", set()),
        ("rule out anterior infarct", set()),
        ("cannot rule out anterior infarct", {"anterior infarction"}),
        ("inferior infarct is not excluded", {"inferior infarction"}),
        ("inferior infarct is ruled out", set()),
        ("Possible LVH, consider inferior MI", {"left ventricular hypertrophy", "inferior infarction"}),
        ("sinus rhythm has replaced atrial fibrillation", {"sinus rhythm"}),
        ("atrial fibrillation is no longer present", set()),
        ("no significant change in left bundle branch block", {"left bundle branch block"}),
        ("incomplete right bundle branch block", {"incomplete right bundle branch block"}),
        ("Normal ECG", {"normal ecg"}),
        ("otherwise normal ecg", set()),
        ("abnormal ecg", set()),
        ("sinus rhythm with slow rate", {"sinus bradycardia"}),
        ("supraventricular extrasystoles", {"premature atrial complexes"}),
        ("qtc 0.48 s. 1st degree A-V block", {"first degree av block"}),
    ],
)
def test_negation_reaches_no_further_than_its_clause(text, stated):
    assert extract(text) == stated


def test_findings_read_from_synthetic_reports_are_those_written_into_them(monkeypatch):
    written, fill = [], wording._fill
    monkeypatch.setattr(wording, "_fill", lambda name, *rest: written.append(name) or fill(name, *rest))
    true, labels, reports = [], [], []
    for item in synthetic.plan(records=80, seed=5).to_pylist():
        written.clear()
        record = synthetic.read(item)
        true.append([name in written[:5] for name in FINDINGS])
        labels.append([name in record.labels["findings"] for name in FINDINGS])
        reports.append(record.report)
    found, true, labels = stated_findings(reports, FINDINGS), np.array(true), np.array(labels)
    assert (found & true).sum() / true.sum() > 0.98  # recall of what was written
    assert (found & labels).sum() / found.sum() > 0.98  # precision against what was rendered
    assert set(PHRASES) <= set(correspondences())


def test_bertscore_is_the_library_s_and_an_empty_draft_has_none(tmp_path):
    bert_score = pytest.importorskip("bert_score")
    tokenizer, folder = tiny_processor().tokenizer, str(tmp_path / "bert")
    tokenizer.model_max_length = 64
    BertModel(
        BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reports, drafts = ["sinus rhythm.", "atrial fibrillation.", "normal ecg."], ["sinus rhythm.", "", "sinus rhythm."]
    statistics, _ = report._wording(reports, drafts, folder)
    _, _, expected = bert_score.score([drafts[2]], [reports[2]], model_type=folder, num_layers=2, device="cpu")
    values = [statistics["bertscore"](np.eye(3, dtype=int)[[index]])[0] for index in range(3)]
    assert values == pytest.approx([1.0, 0.0, expected.item()], abs=1e-5)
    with pytest.raises(ValueError, match="--bertscore"):
        report._wording(reports, drafts, str(tmp_path / "none"))


# ---------------------------------------------------------------------------------------------- ranking and its tasks


def test_ranks_agree_with_sorting_and_ties_are_in_random_order():
    rng = np.random.default_rng(0)
    queries, candidates = rng.normal(size=(30, 8)), rng.normal(size=(40, 8))
    number = rng.integers(10, size=30), rng.permutation(np.arange(40) % 10)
    found = rank(queries, candidates, *number)
    for index, query in enumerate(queries):
        order = number[1][np.argsort(-(candidates @ query))]
        assert found.ranks[index] == 1 + np.flatnonzero(order == number[0][index])[0]
    # Three equal candidates, one of them right: a third of all orders has it first.
    same = rank(np.ones((1, 2)), np.ones((1, 2)), np.array([1]), np.array([0, 1, 2]), row_of=np.zeros(3, dtype=int))
    assert same.within(1)[0] == pytest.approx(1 / 3) and same.within(5)[0] == 1 and same.ranks[0] == 2
    assert same.chance(1)[0] == pytest.approx(1 / 3) and same.chance(5)[0] == 1
    with pytest.raises(ValueError, match="no right candidate"):
        rank(queries, candidates, number[0] + 100, number[1])


def test_reports_that_say_the_same_are_hits():
    texts, text_index = retrieval.distinct_reports(["Normal ECG. Afib!", "afib.", "afib.  normal ecg"])
    assert texts == ["Normal ECG. Afib!", "afib."] and text_index.tolist() == [0, 1, 0]
    ecg = np.array([[1.0, 0.1], [0.0, 1.0], [0.9, 0.0]])
    found = retrieval.rankings(ecg, np.eye(2), text_index)
    assert found["ecg to report"]["identical"].within(1).tolist() == [1, 1, 1]
    assert found["ecg to report"]["naive"].within(1).tolist() == [0.5, 1, 0.5]
    assert found["report to ecg"]["identical"].within(1).tolist() == [1, 1, 1]
    assert found["report to ecg"]["naive"].within(1).tolist() == [1, 1, 0]


def test_retrieval_saves_the_ranks_that_its_figures_follow_from(evaluated, tmp_path):
    results, predictions = run(evaluated, tmp_path, "retrieval", "--against", str(evaluated / "other"))
    assert_compared(results, predictions, "ecg_to_report_recall_10", "ecg_to_report_recall_10", "recall")
    for direction in retrieval.DIRECTIONS:
        ranks = predictions[predictions["label"] == direction]["score"]
        figure = results["metrics"][f"{direction.replace(' ', '_')}_median_rank"]
        assert figure["value"] == ranks.median() and figure["low"] <= figure["value"] <= figure["high"]
    metrics = results["metrics"]
    assert metrics["ecg_to_report_recall_10"]["value"] >= metrics["ecg_to_report_naive_recall_10"]["value"]


def test_patients_are_identified_by_their_other_recordings(evaluated, tmp_path):
    results, predictions = run(evaluated, tmp_path, "identify", "--split", "train")
    assert results["patients"] == len(predictions) == predictions["patient"].nunique() > 5
    for row in predictions.itertuples():  # a patient's two different recordings
        assert (
            row.record != row.gallery_record and row.record.rsplit("-", 1)[0] == row.gallery_record.rsplit("-", 1)[0]
        )
    assert results["metrics"]["recall_1"]["value"] == (predictions["score"] == 1).mean()
    features = np.random.default_rng(1).normal(size=(6, 4))
    assert (identify.identification(features, 3 * features).ranks == 1).all()


def test_published_pairs_are_found_by_file_name_and_read_to_their_length(evaluated, tmp_path):
    records = list(load_prepared(evaluated / "data")["train"]["record"][:4])
    files = {"gallery": records[:2], "probe": records[2:]}

    def table(name, **columns):
        named = {"filename_hr": [f"records500/{record}_hr" for record in files[name]] + ["a_hr"]}
        pd.DataFrame(named | columns | {"label": [0, 1, 2]}).to_csv(tmp_path / f"valid_{name}.csv", index=False)

    for name in files:
        table(name, length=2500)
    _, predictions = run(evaluated, tmp_path, "identify", "--splits", str(tmp_path))
    assert predictions["record"].tolist() == records[2:] and predictions["gallery_record"].tolist() == records[:2]
    splits = load_prepared(evaluated / "data")
    table("gallery", length=[2500, 1000, 2500])
    gallery, _, pairs, change = identify.published_pairs(splits, str(tmp_path), "data")
    signal, _ = change.apply(np.ones((2, 12, 5000)), np.ones((2, 12), dtype=bool), list(gallery["record"]))
    assert pairs == 3 and signal.sum(axis=2)[:, 0].tolist() == [2500, 1000]
    table("probe")
    with pytest.raises(SystemExit, match="needs the columns filename_hr, length and label"):
        run(evaluated, tmp_path, "identify", "--splits", str(tmp_path))
    (tmp_path / "valid_probe.csv").unlink()
    with pytest.raises(SystemExit, match="no valid_probe.csv"):
        run(evaluated, tmp_path, "identify", "--splits", str(tmp_path))


# ------------------------------------------------------------------------------------------------------------- report


def test_draft_figures_agree_with_the_libraries_that_define_them():
    sacrebleu = pytest.importorskip("sacrebleu")
    reports = ["sinus rhythm. normal ecg.", "atrial fibrillation. left axis deviation.", "sinus rhythm. lvh."]
    drafts = ["sinus rhythm. normal ecg.", "atrial flutter. left axis deviation.", "sinus rhythm. lbbb."]
    statistics, _ = report._wording(reports, drafts)
    once = np.ones((1, 3), dtype=int)
    assert statistics["bleu"](once)[0] == pytest.approx(sacrebleu.corpus_bleu(drafts, [reports]).score / 100)
    repeated = sacrebleu.corpus_bleu([drafts[0], drafts[1], drafts[1]], [[reports[0], reports[1], reports[1]]]).score
    assert statistics["bleu"](np.array([[1, 2, 0]]))[0] == pytest.approx(repeated / 100)
    truth, stated = stated_findings(reports), stated_findings(drafts)
    overall = report._overall(truth, stated)
    assert overall["findings_precision"](once)[0] == overall["findings_recall"](once)[0] == pytest.approx(4 / 6)


def test_drafts_of_a_batch_are_those_of_single_recordings(evaluated, tmp_path):
    rows = load_prepared(evaluated / "data")["test"].select(range(3))
    model, processor = tiny_model(), tiny_processor()
    drafts = report.draft_reports(model, processor, rows, batch_size=2, max_new_tokens=8)
    assert drafts == [report.draft_reports(model, processor, rows.select([i]), max_new_tokens=8)[0] for i in range(3)]
    against = ["--against", str(evaluated / "other")]
    results, predictions = run(evaluated, tmp_path, "report", "--limit", "4", "--max-new-tokens", "8", *against)
    assert_compared(results, predictions, "findings_recall", "findings_recall", "F1")
    assert "findings_f1_less_same_for_all" in results["metrics"]
    saved = pd.read_parquet(tmp_path / "out" / "drafts.parquet")
    assert len(saved) == 4 == results["records"] and "draft_other" in saved and saved["draft"].map(type).eq(str).all()
    assert results["metrics"]["findings_f1_same_for_all"]["value"] > 0
    assert "worst:" in results["tables"]["Worst and best drafts"]


# ------------------------------------------------------------------------------------------------ transfer, finetune


def test_transfer_pairs_labels_by_finding(evaluated, tmp_path):
    other = str(evaluated / "encoder")
    results, predictions = run(evaluated, tmp_path, "transfer", "--against", other, data=("data", "rhythm"))
    across = [row for row in results["classes"] if row["source"].endswith("(findings)") and "rhythm" in row["target"]]
    assert {row["label"]: row["target_labels"] for row in across} == {name: [code] for name, code in RHYTHMS.items()}
    rows = {(row["source"], row["target"], row["method"]): row for row in results["groups"]}
    a, b = sorted({row["source"] for row in results["groups"]}, key=lambda name: name.endswith("(rhythm)"))
    # The same recordings under other names: the same figure.
    assert rows[a, b, "probe"]["auroc"] == pytest.approx(rows[b, b, "probe"]["auroc"])
    assert predictions.groupby(["source", "target"]).ngroups == 4
    pair = rows[a, b, "probe"]["auroc"] - rows[a, b, "probe_other"]["auroc"]
    assert rows[a, b, "probe_other"]["less"]["value"] == pytest.approx(pair)
    assert (a, b, "zero_shot") in rows and (a, b, "zero_shot_other") not in rows
    assert f"{other} has no text tower: no zero-shot matrix." in results["notes"]
    assert {name: len(units) for name, units in results["profile"].items()} == {"model": 4, "other": 4}
    with pytest.raises(SystemExit, match="two or more folders"):
        run(evaluated, tmp_path, "transfer")


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
