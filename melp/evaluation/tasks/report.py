"""Drafted reports against the true ones: the findings they state, and the words they share."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm import tqdm

from melp.data.batches import MelpCollator, prepare_inputs
from melp.data.prepared import with_reports
from melp.evaluation.classification import filled_split
from melp.evaluation.folders import load_folders
from melp.evaluation.metrics import Statistic, bootstrap, paired_bootstrap, weighted_mean, with_interval
from melp.evaluation.models import Runtime, load_models
from melp.evaluation.report_findings import PHRASES, stated_findings
from melp.evaluation.results import Results, difference, key_of, prediction_table, with_bounds
from melp.evaluation.settings import Report
from melp.markdown import Markdown, escape, table
from melp.sources import fetch, without_revision
from modeling_melp import MelpModel
from processing_melp import MelpProcessor

_SHOWN = 3  # best and worst drafts printed


# ------------------------------------------------------------------------------------------------------------ drafts


def draft_reports(
    model: MelpModel,
    processor: MelpProcessor,
    split: Dataset,
    batch_size: int = 64,
    progress: bool = False,
    **generate,
) -> list[str]:
    """Drafts a report for each row of a split; each recording is encoded once, `generate` goes to `generate`."""
    collate, drafts = MelpCollator(processor, text=False), []
    for start in tqdm(range(0, len(split), batch_size), desc="drafts", unit="batch", disable=not progress):
        rows = split.select(range(start, min(start + batch_size, len(split))))
        batch = prepare_inputs(collate(list(rows)), model.device, model.config.ecg_config.scaling)
        with torch.inference_mode():
            ids = model.generate(**batch, **generate)
        drafts += processor.batch_decode(ids, skip_special_tokens=True)
    return drafts


def _drafts_of_all(model, processor, rows: Dataset, runtime, **generate) -> list[str]:
    """Drafts a share on each of several processes; all get the whole."""
    share = rows.select(range(runtime.rank, len(rows), runtime.world))
    drafts = draft_reports(model, processor, share, runtime.batch_size, runtime.rank == 0, **generate)
    if runtime.world == 1:
        return drafts
    whole = [""] * len(rows)
    for rank, part in enumerate(gather_object([drafts])):
        whole[rank :: runtime.world] = part
    return whole


# ----------------------------------------------------------------------------------------------------------- figures


def finding_figures(truth: np.ndarray, drafted: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Returns precision, recall and F1, each (draws, findings); NaN where nothing is drafted, stated, or either.

    Args:
        truth, drafted: (recordings, findings) bool; weights: (draws, recordings).
    """
    both, true, given = (weights @ part.astype(float) for part in (truth & drafted, truth, drafted))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"precision": both / given, "recall": both / true, "f1": 2 * both / (true + given)}


def _overall(truth: np.ndarray, drafted: np.ndarray) -> dict[str, Statistic]:
    """Returns statistics over all statements (micro), and the mean F1 of the findings that reports state (macro)."""
    hits, true, given = (part.sum(1).astype(float) for part in (truth & drafted, truth, drafted))
    known = truth.any(axis=0)

    def ratio(numerator, denominator):
        return lambda w: (w @ numerator) / np.where(w @ denominator, w @ denominator, np.nan)

    def mean_f1(weights):
        values = finding_figures(truth[:, known], drafted[:, known], weights)["f1"]
        counts = (~np.isnan(values)).sum(1)
        return np.nansum(values, axis=1) / np.where(counts, counts, np.nan)

    return {
        "findings_precision": ratio(hits, given),
        "findings_recall": ratio(hits, true),
        "findings_f1": ratio(2 * hits, true + given),
        "findings_macro_f1": mean_f1,
    }


def _wording(
    reports: Sequence[str], drafts: Sequence[str], language_model: str | None = None, device: str = "cpu"
) -> tuple[dict[str, Statistic], list[str]]:
    """Returns BLEU, ROUGE-L, METEOR and BERTScore where what they need is there, and a note on each other one."""
    reports, drafts = [text.lower() for text in reports], [text.lower() for text in drafts]
    statistics, notes = {}, []
    measures = {"bleu": _bleu, "rouge_l": _rouge_l, "meteor": _meteor}
    if language_model:
        measures["bertscore"] = partial(_bertscore, language_model, device)
    for name, measure in measures.items():
        try:
            statistics[name] = measure(reports, drafts)
        except ImportError as error:
            notes.append(f"{name} is left out, {error.name} is not installed: pip install 'melp[report]'")
        except LookupError:
            notes.append(f"{name} is left out, WordNet is not at hand: python -m nltk.downloader wordnet")
    return statistics, notes


def _bleu(reports: list[str], drafts: list[str]) -> Statistic:
    """Returns corpus BLEU from 0 to 1, of the sums of each recording's counts."""
    from sacrebleu.metrics import BLEU

    scorer = BLEU()
    scores = [scorer.corpus_score([draft], [[report]]) for draft, report in zip(drafts, reports, strict=True)]
    counts = np.array([[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in scores])

    def statistic(weights):
        sums = (weights @ counts).tolist()
        return np.array([BLEU.compute_bleu(row[:4], row[4:8], *row[8:]).score / 100 for row in sums])

    return statistic


def _rouge_l(reports: list[str], drafts: list[str]) -> Statistic:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    pairs = zip(reports, drafts, strict=True)
    return weighted_mean(np.array([scorer.score(report, draft)["rougeL"].fmeasure for report, draft in pairs]))


def _meteor(reports: list[str], drafts: list[str]) -> Statistic:
    """Returns METEOR; raises LookupError without nltk's WordNet."""
    from nltk.translate.meteor_score import single_meteor_score

    pairs = zip(reports, drafts, strict=True)
    return weighted_mean(np.array([single_meteor_score(report.split(), draft.split()) for report, draft in pairs]))


def _bertscore(language_model: str, device: str, reports: list[str], drafts: list[str]) -> Statistic:
    """Returns the F-measure, not rescaled, on the layer that the library's table names (else on the last one).

    Raises:
        ValueError: naming the language model that cannot be loaded.
    """
    from bert_score import BERTScorer
    from bert_score.utils import model2layers
    from transformers import AutoConfig

    try:
        folder, name = str(fetch(language_model)), without_revision(language_model)
        config = AutoConfig.from_pretrained(folder)
        layers = model2layers.get(name, model2layers.get(Path(name).name, config.num_hidden_layers))
        scorer = BERTScorer(model_type=folder, num_layers=layers, device=device)
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"--bertscore {language_model}: {error}") from error
    # A tokenizer may name no limit; RoBERTa's positions begin at 2.
    limit = config.max_position_embeddings - 2
    scorer._tokenizer.model_max_length = min(scorer._tokenizer.model_max_length, limit)
    values = np.zeros(len(drafts))  # of an empty draft, which the library cannot read
    filled = [index for index, draft in enumerate(drafts) if draft.strip()]
    if filled:
        _, _, f_measure = scorer.score([drafts[index] for index in filled], [reports[index] for index in filled])
        values[filled] = f_measure.numpy()
    return weighted_mean(values)


# --------------------------------------------------------------------------------------------------------------- run


def run(settings: Report, runtime: Runtime) -> Results:
    """Drafts reports and compares them with the true ones; see `Report`."""
    splits, where = load_folders(settings.data), settings.where
    rows = with_reports(filled_split(splits, settings.split, where))
    if len(rows) == 0:
        raise ValueError(f"{where}, split {settings.split!r}: no recording has a report.")
    if settings.limit is not None and settings.limit < len(rows):
        order = np.random.default_rng(settings.seed).permutation(len(rows))
        rows = rows.select(np.sort(order[: settings.limit]))
    generate = {"num_beams": settings.num_beams}
    if settings.max_new_tokens is not None:
        generate["max_new_tokens"] = settings.max_new_tokens
    reports = list(rows["report"])
    usual, source = _usual_report(splits, reports)
    models = load_models(settings, runtime, text=True, untrained=False)
    drafts = {name: _drafts_of_all(*pair, rows, runtime, **generate) for name, pair in models.items()}
    drafts["same for all"] = [usual] * len(rows)
    results = Results.start(settings, rows)
    truth = stated_findings(reports)
    stated = {name: stated_findings(texts) for name, texts in drafts.items()}
    patients, sampling = list(rows["patient"]), {"samples": settings.samples, "seed": settings.seed}
    _add_overall(results, settings, str(runtime.device), reports, drafts, truth, stated, patients)
    findings = list(PHRASES)
    _add_findings(results, findings, truth, stated["model"], patients, sampling)
    _compare_findings(results, findings, truth, stated)
    results.notes.append(f'"same for all" is the most frequent report of {source}: {usual!r}')
    results.notes.append("Findings are those that the true report states; what it leaves out counts against a draft.")
    known = np.any([truth, *stated.values()], axis=(0, 1))
    names = [name for name, one in zip(findings, known, strict=True) if one]
    scores = {name: matrix[:, known].astype(float) for name, matrix in stated.items()}
    results.predictions = prediction_table(rows, names, truth[:, known], scores)
    frame = _draft_table(rows, drafts["model"], findings, truth, stated["model"])
    results.tables["Worst and best drafts"] = _shown(frame)
    frame = frame.assign(**{f"draft_{key_of(name)}": drafts[name] for name in results.against})
    results.extras["drafts.parquet"] = lambda path: frame.to_parquet(path, index=False)
    if settings.output:
        results.notes.append("drafts.parquet has every draft beside its report.")
    return results


def _add_overall(
    results: Results, settings: Report, device: str, reports, drafts: dict, truth, stated: dict, patients
):
    """Adds figures of all findings together and of the wording, and the model's less those of each other line."""
    sampling = {"samples": settings.samples, "seed": settings.seed}
    statistics, lines = {}, []
    for name, texts in drafts.items():
        wording, notes = _wording(reports, texts, settings.bertscore, device)
        statistics[name] = _overall(truth, stated[name]) | wording
        figures = {key: with_interval(patients, statistic, **sampling) for key, statistic in statistics[name].items()}
        # Precision of drafts that state nothing does not exist.
        figures = {key: None if np.isnan(figure["value"]) else figure for key, figure in figures.items()}
        for key, figure in figures.items():
            results.add(key if name == "model" else f"{key}_{key_of(name)}", figure)
        lines.append([name, *(with_bounds(figure) for figure in figures.values())])
    results.notes += notes
    if settings.bertscore:
        results.notes.append(f"BERTScore is by {settings.bertscore}, F-measure, not rescaled.")
    results.tables["Drafts"] = table(["", *(key.replace("_", " ") for key in figures)], lines)
    ours, *others = statistics
    lines = []
    for name in others:
        lines.append([f"model less {name}"])
        for key, statistic in statistics[ours].items():
            less = paired_bootstrap(patients, statistic, statistics[name][key], **sampling)
            less = None if np.isnan(less["value"]) else less
            results.add(f"{key}_less_{key_of(name)}", less)
            lines[-1].append(difference(less))
    results.tables["Differences"] = table(["", *(key.replace("_", " ") for key in figures)], lines)


def _compare_findings(results: Results, findings: Sequence[str], truth: np.ndarray, stated: dict[str, np.ndarray]):
    """Adds the F1 of each finding that the true reports state to the profile; of one never drafted it is 0."""
    results.profile_metric = "F1"
    once = np.ones((1, len(truth)))
    values = {name: finding_figures(truth, stated[name], once)["f1"][0] for name in ("model", *results.against)}
    for index in np.flatnonzero(truth.any(axis=0)):
        results.compare(findings[index], {name: f1[index] for name, f1 in values.items()})


def _usual_report(splits, reports: list[str]) -> tuple[str, str]:
    """Returns the most frequent report of training, or of these reports where there is none; and which it was."""
    training = list(with_reports(splits["train"])["report"]) if "train" in splits else []
    source = "the training split" if training else "the very reports (there is no training split with reports)"
    return Counter(training or reports).most_common(1)[0][0], source


def _add_findings(results: Results, findings, truth, drafted, patients, sampling):
    """Adds `classes` and a table: precision, recall and F1 of each finding that a report or a draft states."""
    once = {name: part[0] for name, part in finding_figures(truth, drafted, np.ones((1, len(truth)))).items()}
    bounds = {
        name: bootstrap(patients, lambda w, name=name: finding_figures(truth, drafted, w)[name], **sampling)
        for name in once
    }
    for index, finding in enumerate(findings):
        row = {"label": finding, "reports": int(truth[:, index].sum()), "drafts": int(drafted[:, index].sum())}
        if not row["reports"] and not row["drafts"]:
            continue
        for name, values in once.items():
            low, high = (bound[index] for bound in bounds[name])
            figure = {name: values[index], f"{name}_low": low, f"{name}_high": high}
            row |= {key: None if np.isnan(value) else float(value) for key, value in figure.items()}
        row["note"] = "" if row["reports"] else "no report states it"
        row["note"] = row["note"] or ("" if row["drafts"] else "no draft states it")
        results.classes.append(row)
    results.tables["Findings stated"] = table(
        ["finding", "reports", "drafts", *once, "note"],
        [
            [row["label"], row["reports"], row["drafts"], *(with_bounds(row, name) for name in once), row["note"]]
            for row in sorted(results.classes, key=lambda row: -row["reports"])
        ],
    )


def _draft_table(rows: Dataset, drafts, findings, truth, drafted) -> pd.DataFrame:
    """Returns a row per recording: report, draft, the findings of both, and their F1 (1 where both state none)."""
    total = truth.sum(1) + drafted.sum(1)
    named = np.array(findings, dtype=object)
    return pd.DataFrame(
        {
            "record": rows["record"],
            "patient": rows["patient"],
            "report": rows["report"],
            "draft": drafts,
            "report_findings": ["; ".join(named[row]) for row in truth],
            "draft_findings": ["; ".join(named[row]) for row in drafted],
            "f1": np.where(total, 2 * (truth & drafted).sum(1) / np.maximum(total, 1), 1.0),
        }
    )


def _shown(frame: pd.DataFrame) -> Markdown:
    """Lists the drafts with the lowest and the highest F1; among equals those of reports with the most findings."""
    order = frame.assign(count=frame["report_findings"].str.split("; ").str.len())
    worst = order.sort_values(["f1", "count"], ascending=[True, False], kind="stable").head(_SHOWN)
    best = order.sort_values(["f1", "count"], ascending=[False, False], kind="stable").head(_SHOWN)
    lines = []
    for title, part in (("worst", worst), ("best", best)):
        for row in part.itertuples():
            lines.append(f"- {title}: {escape(row.record)}, F1 {row.f1:.2f}")
            lines += [f"  - report: {escape(row.report)}", f"  - draft: {escape(row.draft)}"]
    return Markdown("\n".join(lines))
