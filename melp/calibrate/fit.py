"""Fits `findings.json`, and tunes it again on a few local labels."""

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from sklearn.model_selection import GroupKFold

from findings_melp import (
    CONDITIONS,
    FINDINGS,
    LIMITS,
    NUMBERS,
    WHOLE,
    check_calibration,
    embed_prompts,
    read_file,
    signal_settings,
    weights_mark,
)
from melp.calibrate.passport import passport_row, transforms
from melp.data.prepared import about_prepared, get_split, load_prepared
from melp.evaluation.calibration import (
    COVERAGE,
    MEASURES,
    MIN_PATIENTS,
    Curve,
    NotCalibrated,
    adaptation_table,
    calibrate_finding,
    centred,
    fit_curve,
    least_count,
    lower_limit,
    measures,
    passport_table,
    thresholds_for,
    verdict_arrays,
    worded,
)
from melp.evaluation.encoding import encode
from melp.evaluation.finding_labels import finding_targets, findings_in, rests_on, whole_recordings
from melp.evaluation.metrics import interval, resample
from melp.evaluation.models import Runtime, load_model
from melp.evaluation.overlap import leaks_from_run, overlaps
from melp.evaluation.results import with_bounds
from melp.files import write_atomically
from melp.markdown import table
from melp.models import model_folder
from modeling_melp import MelpModel

FOLDS = 5
MOST_LOCAL = 500  # labels of `--adapt`: with more, calibrate anew
PASSPORT_FIGURES = ("auroc", "low", "high", "positives")


@dataclass(kw_only=True)
class Options:
    """The settings of a calibration; see `python -m melp.calibrate --help`."""

    model: str
    data: str
    split: str = "validation"
    label_set: list[str] | None = None
    coverage: float = COVERAGE
    prompts: str | None = None
    passport: bool = False
    adapt: bool = False
    labels: int | None = None
    output: Path | None = None
    seed: int = 0


class Calibration:
    """A model, labelled recordings, and the similarities of the two.

    Raises:
        ValueError: where the model has no text tower, or no recording has all leads for 10 s.
    """

    def __init__(self, options: Options, runtime: Runtime):
        self.options, self.runtime = options, runtime
        self.folder = model_folder(options.model)
        self.model, self.processor = load_model(options.model, runtime.device)
        if not isinstance(self.model, MelpModel):
            raise ValueError(f"{options.model} has no text tower: findings need a whole MELP model.")
        rows = get_split(load_prepared(options.data), options.split, options.data)
        derive, where = self.processor.feature_extractor.derive_leads, f"{options.data} ({options.split})"
        self.rows, self.notes = whole_recordings(rows, derive, where)
        self.patients = np.asarray(self.rows["patient"])
        self.file = Path(options.output or self.folder / FINDINGS)

    def warnings(self) -> list[str]:
        """Names what makes the figures too good, and recordings that are not used."""
        notes = overlaps(self.options.model, [about_prepared(self.options.data)["database"]])
        return self.notes + notes + leaks_from_run(self.options.model, self.rows)

    def similarities(self, texts: np.ndarray, rows: Dataset, name: str, transform=None) -> np.ndarray:
        """Returns (recordings, findings)."""
        return encode(self.model, self.processor, rows, self.runtime, name, transform)["rhythm"] @ texts.T

    def texts(self, entries: dict[str, dict]) -> np.ndarray:
        """Returns the embeddings of findings, (findings, width)."""
        prompts = [entry["prompts"] for entry in entries.values()]
        return embed_prompts(self.model, self.processor, prompts).cpu().numpy()

    # --------------------------------------------------------------------------------------------------------- fitting

    def fit(self) -> dict:
        """Calibrates every finding that the folder labels; returns what `findings.json` is to hold."""
        options = self.options
        entries = findings_in(self.rows, options.label_set, options.prompts)
        if not entries:
            raise ValueError(f"{options.data} has no label set: nothing to calibrate on. Prepare it with labels.")
        targets, texts = finding_targets(self.rows, entries), self.texts(entries)
        similarities = self.similarities(texts, self.rows, "calibrate")
        findings, refused = {}, {}
        for column, (name, entry) in enumerate(entries.items()):
            chosen = self._labelled(targets[:, column])
            try:
                findings[name] = entry | calibrate_finding(
                    *(part[chosen] for part in (targets[:, column] > 0, similarities[:, column], self.patients)),
                    options.coverage,
                    options.seed,
                )
            except NotCalibrated as error:
                refused[name] = str(error)
        if options.passport:
            columns = [list(entries).index(name) for name in findings]
            self._add_passport(findings, targets[:, columns], texts[columns])
        about = about_prepared(options.data)
        data = {"database": about["database"], "fingerprint": about["fingerprint"], "split": options.split}
        return {
            "findings": findings,
            "refused": refused,
            "data": data | {"records": len(self.rows), "patients": len(set(self.patients))},
            "calibration": {
                "coverage": options.coverage,
                "curve": "logistic",
                "limits": "class-conditional conformal",
            },
            "weights": weights_mark(self.model),
            "signals": signal_settings(self.model),
        }

    def _labelled(self, column: np.ndarray) -> np.ndarray:
        return np.flatnonzero(~np.isnan(column))

    def _add_passport(self, findings: dict[str, dict], targets: np.ndarray, texts: np.ndarray):
        for entry in findings.values():
            entry["passport"] = {WHOLE: {key: entry[key] for key in PASSPORT_FIGURES}}
        for condition, similarities in self._by_condition(texts, self.rows, CONDITIONS.keys() - {WHOLE}):
            for column, entry in enumerate(findings.values()):
                chosen = self._labelled(targets[:, column])
                parts = targets[chosen, column] > 0, similarities[chosen, column], self.patients[chosen]
                entry["passport"][condition] = passport_row(*parts, self.options.coverage)

    def _by_condition(
        self, texts: np.ndarray, rows: Dataset, wanted: Collection[str]
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yields each condition with the similarities of recordings that are cut to it."""
        derive, same = self.processor.feature_extractor.derive_leads, {}
        for condition, transform in transforms(derive).items():
            if condition in wanted:
                key = "limb leads" if derive and condition == "I, II" else condition
                if key not in same:
                    same[key] = self.similarities(texts, rows, condition, transform)
                yield condition, same[key]

    # -------------------------------------------------------------------------------------------------------- adapting

    def adapt(self) -> tuple[dict, list[str]]:
        """Tunes a calibration again on local labels; returns the new `findings.json` and what is to be printed.

        Raises:
            ValueError: where there is none yet, or the folder labels none of its findings.
        """
        source = self.folder / FINDINGS
        if not source.is_file():
            raise ValueError(f"{self.folder} has no {FINDINGS} to adapt: calibrate it first, without --adapt.")
        content = read_file(source)
        check_calibration(self.model, source)
        about = about_prepared(self.options.data)
        if rests_on(content.get("adapted", {}), [about["fingerprint"]], self.options.split):
            raise ValueError(f"{source} was adapted on these recordings before: again would count their labels twice.")
        entries = content["findings"]
        targets = finding_targets(self.rows, entries)
        known = ~np.isnan(targets).all(axis=0)
        if not known.any():
            raise ValueError(f"{self.options.data} labels none of the findings of {source}.")
        entries = {name: entry for (name, entry), there in zip(entries.items(), known, strict=True) if there}
        targets, similarities = targets[:, known], self.similarities(self.texts(entries), self.rows, "adapt")
        local, rest = self._draw_local()
        if len(rest):
            parts = [(local, rest)]
        elif len(set(self.patients)) < FOLDS:
            raise ValueError(f"{self.options.data}: --adapt needs {FOLDS} patients to measure, better 50 and more.")
        else:
            folds = GroupKFold(FOLDS).split(local, groups=self.patients[local])
            parts = [(local[train], local[test]) for train, test in folds]
        states = {
            "before": lambda chosen: entries,
            "after": lambda chosen: self._tuned(entries, targets, similarities, chosen),
        }
        measured = _before_and_after(parts, states, targets, similarities, self.patients, self.options.seed)
        how = (
            f"measured on the {len(rest):,} other recordings"
            if len(rest)
            else f"measured in {FOLDS} folds over patients"
        )
        lines = [f"{len(local):,} local labels; {how}. 95% intervals, bootstrap over patients.\n"]
        lines.append(adaptation_table(measured))
        tuned = self._tuned(entries, targets, similarities, local)
        conditions = self._tune_passport(tuned, targets, local)
        tuned = {name: entry for name, entry in tuned.items() if "local" in entry}
        others = [name for name in content["findings"] if name not in tuned]
        content["findings"] |= tuned
        content["adapted"] = {name: about[name] for name in ("database", "fingerprint")} | {
            "split": self.options.split,
            "records": len(local),
            "findings": list(tuned),
            "passport": conditions,
            "measured": measured,
        }
        if conditions:
            lines.append(
                f"Passport: the curves for {'; '.join(conditions)} were tuned on the same recordings, cut; its AUROCs "
                "are still those of the first calibration."
            )
        if others:
            lines.append(f"No local label names them, so they stay as they were: {', '.join(others)}.")
        return content, lines

    def _tune_passport(self, entries: dict[str, dict], targets: np.ndarray, chosen: np.ndarray) -> list[str]:
        """Tunes the passport's curves of entries on the same recordings, cut; returns the conditions that have any."""
        passports = {name: entry["passport"] for name, entry in entries.items() if "passport" in entry}
        wanted = {key for passport in passports.values() for key, row in passport.items() if "slope" in row}
        tuned = []
        for condition, similarities in self._by_condition(self.texts(entries), self.rows.select(chosen), wanted):
            tuned.append(condition)
            for column, (name, entry) in enumerate(entries.items()):
                row = passports.get(name, {}).get(condition, {})
                if "slope" in row:
                    known = targets[chosen, column], similarities[:, column], self.patients[chosen]
                    entry["passport"] = entry["passport"] | {condition: tune(row, *known, entry["coverage"])}
        return tuned

    def _draw_local(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the recordings to adapt on, whole patients as far as `--labels` goes, and the others."""
        wanted = self.options.labels or len(self.rows)
        if wanted > MOST_LOCAL:
            raise ValueError(
                f"{wanted:,} labels are more than --adapt is for: take --labels {MOST_LOCAL} or fewer, or calibrate "
                "anew, without --adapt."
            )
        _, patient = np.unique(self.patients, return_inverse=True)
        order = np.random.default_rng(self.options.seed).permutation(patient.max() + 1)
        rank = np.argsort(order)[patient]
        taken = np.zeros(len(rank), dtype=bool)
        taken[np.argsort(rank, kind="stable")[:wanted]] = True
        cut = np.isin(patient, patient[taken])
        return np.flatnonzero(taken), np.flatnonzero(~cut)

    def _tuned(self, entries: dict, targets: np.ndarray, similarities: np.ndarray, chosen: np.ndarray) -> dict:
        columns = enumerate(entries.items())
        patients = self.patients[chosen]
        return {
            name: tune(entry, targets[chosen, column], similarities[chosen, column], patients, entry["coverage"])
            for column, (name, entry) in columns
        }


def tune(entry: dict, targets: np.ndarray, similarities: np.ndarray, patients: np.ndarray, coverage: float) -> dict:
    """Returns a finding's entry, or a line of its passport, tuned on local recordings.

    The curve is corrected in slope and shift, the less the fewer they are; a limit is taken anew where as many
    patients as its coverage needs have (or lack) the finding, the thresholds where there are enough to calibrate.
    What they are too few for is carried over.
    """
    known = ~np.isnan(targets)
    truth, similarities, patients = targets[known] > 0, similarities[known], patients[known]
    if not len(truth):
        return entry
    old = Curve(entry["slope"], entry["intercept"])
    curve = fit_curve(truth, similarities, prior=old)
    counts = {kind: len(np.unique(patients[truth == kind])) for kind in (True, False)}
    marks = {key: _similarity_at(old, entry[key]) for key in LIMITS}
    if counts[True] >= least_count(coverage):
        marks["absent_below"] = lower_limit(similarities[truth], patients[truth], coverage)
    if counts[False] >= least_count(coverage):
        marks["present_above"] = -lower_limit(-similarities[~truth], patients[~truth], coverage)
    limits = map(float, worded(*(curve(marks[key]) for key in LIMITS)))
    tuned = dict(zip((*NUMBERS, *LIMITS), (curve.slope, curve.intercept, *limits), strict=True))
    if "thresholds" in entry:
        carried = {name: float(curve(_similarity_at(old, value))) for name, value in entry["thresholds"].items()}
        enough = min(counts.values()) >= MIN_PATIENTS
        tuned["thresholds"] = thresholds_for(truth, curve(similarities)) if enough else carried
    return entry | tuned | {"local": {"positives": int(truth.sum()), "negatives": int((~truth).sum())}}


def _similarity_at(curve: Curve, probability: float) -> float:
    probability = min(max(probability, 1e-300), 1 - 1e-16)
    return (np.log(probability) - np.log1p(-probability) - curve.intercept) / curve.slope


def _before_and_after(parts, states: dict[str, Callable], targets, similarities, patients, seed: int) -> dict:
    """Returns `{measure: {"before", "after", "difference": {"value", "low", "high"}}}`, means over findings."""
    tested = np.concatenate([test for _, test in parts])
    draws, values = {}, {}
    for state, entries_for in states.items():
        # Limits differ from fold to fold, so verdicts are made fold by fold and measured together.
        probabilities, absent, present = [], [], []
        for train, test in parts:
            chance, below, above = verdict_arrays(entries_for(train), similarities[test])
            probabilities.append(chance)
            absent.append(np.broadcast_to(below, chance.shape))
            present.append(np.broadcast_to(above, chance.shape))
        arrays = targets[tested], *(np.concatenate(part) for part in (probabilities, absent, present))

        def statistic(weights, arrays=arrays):
            return measures(*arrays, weights)

        measured = statistic(np.ones((1, len(tested))))
        values[state] = np.nanmean(measured, axis=2)[0]
        draws[state] = np.nanmean(centred(resample(patients[tested], statistic, 500, seed), measured), axis=2)
    values["difference"], draws["difference"] = (one["after"] - one["before"] for one in (values, draws))
    return {
        measure: {state: _figure(values[state][place], draws[state][:, place]) for state in values}
        for place, measure in enumerate(MEASURES)
    }


def _figure(value: float, draws: np.ndarray) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), map(float, (value, *interval(draws))), strict=True))


def describe(content: dict) -> str:
    """Returns the tables of what was calibrated, refused, and of the passport."""
    header = ["finding", "labels", "positives", "negatives", "AUROC", "absent below", "present above"]
    rows = []
    for name, entry in content["findings"].items():
        area = with_bounds({"value": entry["auroc"], "low": entry["low"], "high": entry["high"]})
        limits_shown = [f"{entry[key]:.1%}" for key in ("absent_below", "present_above")]
        labels = f"{entry['label_set']}: {', '.join(entry['labels'])}"
        rows.append([name, labels, entry["positives"], entry["negatives"], area, *limits_shown])
    parts = [table(header, rows)]
    if passport := passport_table(content["findings"], intervals=True):
        parts.append("Passport: AUROC from less\n\n" + passport)
    if content["refused"]:
        rows = [[name, reason] for name, reason in content["refused"].items()]
        parts.append("Not calibrated, and left out:\n\n" + table(["finding", "reason"], rows))
    return "\n".join(parts)


def write(content: dict, file: Path):
    """Writes `findings.json`, whole or not at all."""
    write_atomically(file, json.dumps(content, indent=2, allow_nan=False) + "\n")
