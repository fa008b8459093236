"""Calibration: whether the probabilities and verdicts of a calibrated model hold on these recordings."""

import numpy as np

from findings_melp import FINDINGS, check_calibration, embed_prompts, read_file
from melp.data.prepared import about_prepared, get_split, load_prepared
from melp.evaluation import figures as draw
from melp.evaluation.calibration import MEASURES, centred, measures, verdict_arrays
from melp.evaluation.classification import filled_split
from melp.evaluation.encoding import encode
from melp.evaluation.finding_labels import finding_targets, rests_on, whole_recordings
from melp.evaluation.folders import as_one
from melp.evaluation.metrics import auroc, interval, resample
from melp.evaluation.models import Runtime, load_models
from melp.evaluation.results import Results, difference, key_of, prediction_table, with_bounds
from melp.evaluation.settings import Calibration
from melp.evaluation.shift import effective_count, likelihood_ratios, weighted_limits
from melp.markdown import table
from melp.models import model_folder


def run(settings: Calibration, runtime: Runtime) -> Results:
    """Measures every finding that the data label; see `Calibration`."""
    opened = {path: filled_split(load_prepared(path), settings.split, path) for path in settings.data}
    models = load_models(settings, runtime, text=True, untrained=False)
    derive = models["model"][1].feature_extractor.derive_leads
    whole = {path: whole_recordings(rows, derive, path) for path, rows in opened.items()}
    parts = {path: kept for path, (kept, _) in whole.items()}
    rows = as_one(list(parts.values()))
    results = Results.start(settings, rows)
    results.notes += [note for _, notes in whole.values() for note in notes]
    for name, source in {"model": settings.model, **settings.comparison_models}.items():
        measured = _measure(settings, runtime, parts, rows, name, source, models[name])
        _add(results, name, measured, settings)
        if name == "model":
            _add_pictures(results, rows, measured)
            if len(parts) > 1:
                _add_folders(results, settings, parts, measured)
            if settings.weighted is not None:
                _add_weighted(results, settings, runtime, rows, models[name], measured)
    return results


def _measure(settings, runtime, parts: dict, rows, name: str, source: str, pair) -> dict:
    """Returns what a model says of the recordings, and how it holds, with draws of patients.

    Args:
        parts: the rows of each folder, whose labels are its own; what it does not label is unknown of its recordings.
        rows: of all of them together.
    """
    file = model_folder(source) / FINDINGS
    if not file.is_file():
        raise ValueError(f"{source} is not calibrated (it has no {FINDINGS}): python -m melp.calibrate {source}")
    check_calibration(pair[0], file)
    content = read_file(file)
    entries = {key: entry for key, entry in content["findings"].items() if entry.get("present_above") is not None}
    targets = np.concatenate([finding_targets(part, entries) for part in parts.values()])
    there = (np.nansum(targets, axis=0) > 0) & (np.nansum(1 - targets, axis=0) > 0)
    if not there.any():
        raise ValueError(f"{settings.where}: its labels name none of the findings of {file}, or no recording has one.")
    entries = {key: entry for (key, entry), known in zip(entries.items(), there, strict=True) if known}
    targets = targets[:, there]
    texts = embed_prompts(*pair, [entry["prompts"] for entry in entries.values()]).cpu().numpy()
    embeddings = encode(*pair, rows, runtime, f"{settings.split} ({name})")["rhythm"]
    arrays = targets, *verdict_arrays(entries, embeddings @ texts.T)
    patients = list(rows["patient"])
    values, draws = _values_and_draws(arrays, patients, settings)
    return {
        "entries": entries,
        "targets": targets,
        "probabilities": arrays[1],
        "arrays": arrays,
        "patients": np.asarray(patients),
        "embeddings": embeddings,
        "texts": texts,
        "values": values,
        "draws": draws,
        "calibrated_on": content.get("data", {}),
        "rests_on": [content.get(part, {}) for part in ("data", "adapted")],
    }


def _values_and_draws(arrays, patients, settings: Calibration, together: bool = False):
    """Returns `measures` of the recordings, (measures, findings), and in each draw of patients."""

    def statistic(weights):
        return measures(*arrays, weights, together)

    values = statistic(np.ones((1, len(patients))))
    return values[0], centred(resample(patients, statistic, settings.samples, settings.seed), values)


def _together(measured: dict, settings: Calibration, chosen=slice(None)) -> dict[str, dict]:
    """Returns each measure of the verdicts on all findings counted as those on one, of chosen recordings."""
    targets, probabilities, *limits = measured["arrays"]
    arrays = targets[chosen], probabilities[chosen], *limits
    values, draws = _values_and_draws(arrays, measured["patients"][chosen], settings, together=True)
    return {measure: _figure(float(values[place, 0]), draws[:, place, 0]) for place, measure in enumerate(MEASURES)}


def _add(results: Results, name: str, measured: dict, settings: Calibration):
    """Adds a model's figures; those of comparison models under their names."""
    targets, entries = measured["targets"], measured["entries"]
    positives = np.nansum(targets, axis=0).astype(int)
    enough = np.flatnonzero(positives >= settings.min_positives)
    suffix, title = ("", "") if name == "model" else (f"_{key_of(name)}", f" ({name})")
    low, high = interval(measured["draws"])
    lines = []
    for column, (finding, entry) in enumerate(entries.items()):
        known = ~np.isnan(targets[:, column])
        row = {
            "label": finding,
            "records": int(known.sum()),
            "positives": int(positives[column]),
            "coverage": entry["coverage"],
            "auroc": float(auroc(targets[known, column, None] > 0, measured["probabilities"][known, column, None])[0]),
            "note": "" if column in enough else f"fewer than {settings.min_positives} positives",
        }
        for place, measure in enumerate(MEASURES):
            bounds = measured["values"][place, column], low[place, column], high[place, column]
            row |= dict(zip((measure, f"{measure}_low", f"{measure}_high"), map(float, bounds), strict=True))
        lines.append(row)
    if name == "model":
        results.classes = lines
    together, shown = _together(measured, settings), []
    for place, (measure, about) in enumerate(MEASURES.items()):
        results.add(f"{measure}_together{suffix}", together[measure])
        if len(enough):
            draws = np.nanmean(measured["draws"][:, place, enough], axis=1)
            results.add(measure + suffix, _figure(float(np.nanmean(measured["values"][place, enough])), draws))
        shown.append(
            [about, *(with_bounds(results.metrics.get(measure + end)) for end in (suffix, f"_together{suffix}"))]
        )
    header = ["", f"mean of {len(enough)} findings", f"verdicts on all {len(entries)} together"]
    results.tables[f"All findings{title}"] = table(header, shown)
    header = ["finding", "positives", "stated", *MEASURES.values(), "AUROC", "note"]
    results.tables[f"Findings{title}"] = table(
        header,
        [
            [
                *(row["label"], row["positives"], f"{row['coverage']:.0%}"),
                *(with_bounds(row, measure) for measure in MEASURES),
                *(row["auroc"], row["note"]),
            ]
            for row in lines
        ],
    )
    folders = results.fingerprints["data"].values()
    if any(rests_on(part, folders, settings.split) for part in measured["rests_on"]):
        results.notes.append("WARNING: the model was calibrated on some or all of these recordings: too good for use.")


def _add_pictures(results: Results, rows, measured: dict):
    """Adds the predictions, the reliability of all findings together, and the coverage of each."""
    targets, probabilities = measured["targets"], measured["probabilities"]
    results.predictions = prediction_table(rows, list(measured["entries"]), targets, {"model": probabilities})
    known = ~np.isnan(targets)
    results.figures["reliability"] = lambda: draw.reliability_diagram(targets[known] > 0, probabilities[known])
    results.figures["coverage"] = lambda: draw.coverage([row for row in results.classes if not row["note"]])


def _add_folders(results: Results, settings: Calibration, parts: dict, measured: dict):
    """Adds the verdicts on all findings together in each folder."""
    ends = np.cumsum([len(part) for part in parts.values()])
    lines = []
    for path, part, end in zip(parts, parts.values(), ends, strict=True):
        chosen = slice(end - len(part), end)
        targets, figures = measured["targets"][chosen], _together(measured, settings, chosen)
        row = {"data": path, "records": len(part), "findings": int((~np.isnan(targets)).any(axis=0).sum())}
        row |= {"positives": int(np.nansum(targets))}
        for measure, figure in figures.items():
            row |= {measure: figure["value"], f"{measure}_low": figure["low"], f"{measure}_high": figure["high"]}
        results.groups.append(row)
        lines.append([*list(row.values())[:4], *(with_bounds(row, measure) for measure in MEASURES)])
    header = ["data", "recordings", "findings labelled", "positives", *MEASURES.values()]
    results.tables["By folder, verdicts on all findings together"] = table(header, lines)


def _add_weighted(results: Results, settings: Calibration, runtime: Runtime, rows, pair, measured: dict):
    """Adds limits of the same recordings, weighted by likeness (`melp.evaluation.shift`), beside those of the file."""
    about = measured["calibrated_on"]
    if about.get("fingerprint") is None or about_prepared(settings.weighted)["fingerprint"] != about["fingerprint"]:
        raise ValueError(f"--weighted {settings.weighted} is not what {settings.model} was calibrated on.")
    old = get_split(load_prepared(settings.weighted), about["split"], settings.weighted)
    old, _ = whole_recordings(old, pair[1].feature_extractor.derive_leads, settings.weighted)
    embeddings = encode(*pair, old, runtime, "calibration")["rhythm"]
    patients, entries, targets = np.asarray(old["patient"]), measured["entries"], measured["targets"]
    is_new = np.repeat([False, True], [len(old), len(rows)])
    everyone = [*(f"old:{name}" for name in patients), *(f"new:{name}" for name in rows["patient"])]
    ratios = likelihood_ratios(np.r_[embeddings, measured["embeddings"]], everyone, is_new, settings.seed)
    weights, own = ratios[~is_new], ratios[is_new]
    old_targets, similarities = finding_targets(old, entries), embeddings @ measured["texts"].T
    below, above = np.full((2, *targets.shape), np.nan)
    for column, entry in enumerate(entries.values()):
        parts = old_targets[:, column], similarities[:, column], patients, weights, own
        below[:, column], above[:, column] = weighted_limits(entry, *parts)
    enough = np.flatnonzero(np.nansum(targets, axis=0) >= settings.min_positives)

    def statistic(draws):
        return measures(targets, measured["probabilities"], below, above, draws)

    value = statistic(np.ones((1, len(rows))))[0]
    draws = resample(list(rows["patient"]), statistic, settings.samples, settings.seed)
    lines = []
    for place, measure in enumerate(MEASURES):
        if measure not in ("coverage_with", "coverage_without", "cannot_say") or not len(enough):
            continue
        old_draws = np.nanmean(measured["draws"][:, place, enough], axis=1)
        new_draws = np.nanmean(draws[:, place, enough], axis=1)
        mean = float(np.nanmean(value[place, enough]))
        results.add(f"{measure}_weighted", _figure(mean, new_draws))
        change = _figure(mean - results.metrics[measure]["value"], new_draws - old_draws)
        results.add(f"{measure}_weighted_less_unweighted", change | {"holds": change["low"] > 0 or change["high"] < 0})
        figures = (results.metrics[name] for name in (measure, f"{measure}_weighted"))
        change = difference(results.metrics[f"{measure}_weighted_less_unweighted"])
        lines.append([MEASURES[measure], *map(with_bounds, figures), change])
    results.tables["Limits weighted by likeness"] = table(["", "as calibrated", "weighted", "difference"], lines)
    apart = float(auroc(is_new[:, None], ratios[:, None])[0])
    results.add("told_apart", apart)
    results.notes.append(
        f"Weighted, the {len(old):,} recordings of the calibration say as much as {effective_count(weights):,.0f}; "
        f"the AUROC at which a classifier tells the two sets apart is {apart:.2f}."
    )


def _figure(value: float, draws: np.ndarray) -> dict:
    return {"value": value} | dict(zip(("low", "high"), map(float, interval(draws)), strict=True))
