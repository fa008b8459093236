"""Drafted reports: figures of findings and wording, and the drafts themselves."""

import numpy as np
import pandas as pd
import pytest
from evaluating import assert_compared, run
from tiny import tiny_model, tiny_processor
from transformers import BertConfig, BertModel

from melp.data.prepared import load_prepared
from melp.evaluation.report_findings import stated_findings
from melp.evaluation.settings import Report
from melp.evaluation.tasks import report
from melp.evaluation.tasks.report import draft_reports


@pytest.mark.slow
def test_bertscore_is_the_library_s_and_an_empty_draft_has_none(tmp_path, monkeypatch):
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
    monkeypatch.setattr(report, "fetch", {"org/bert@v1": folder}.get)  # found as the models are
    statistics, _ = report._wording(reports, drafts, "org/bert@v1")
    assert statistics["bertscore"](np.eye(3, dtype=int)[[2]])[0] == values[2]
    assert Report(model="m", data=["d"], bertscore="org/bert@v1").bertscore == "org/bert@v1"


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


def test_drafts_are_texts(evaluated):
    rows = load_prepared(evaluated / "data")["test"].select(range(2))
    drafts = draft_reports(tiny_model(), tiny_processor(), rows, max_new_tokens=10)
    assert len(drafts) == 2 and all(isinstance(draft, str) for draft in drafts)
