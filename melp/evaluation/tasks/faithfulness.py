"""Faithfulness: do the parts that are shown as evidence carry the score, and are they the right ones?"""

import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from explain_melp import DRAWS, METHOD, Recording, embed_texts
from melp.data.batches import MelpCollator
from melp.evaluation import figures as draw
from melp.evaluation.classification import LabelledSplits
from melp.evaluation.correspondences import finding_of
from melp.evaluation.folders import load_folders
from melp.evaluation.metrics import weighted_mean, with_interval
from melp.evaluation.models import Runtime, load_models
from melp.evaluation.prompts import PROMPTS, load_prompts, load_yaml
from melp.evaluation.results import Results, key_of, with_bounds
from melp.evaluation.settings import Faithfulness
from melp.explain.beats import find_beats
from melp.explain.measures import LOCATED, RANDOM, SHARES, TERRITORIES, Measured, attributions, measure
from melp.markdown import table
from melp.names import name_hash
from melp.synthetic import corpus
from melp.synthetic.places import PLACES, Place, place_of
from processing_melp import scale_ecg

SIMULATED, STORED = "simulated", "data"  # the recordings measured
WORLD = 977  # the seed of the simulated patients: no recipe trains on these
SCANNED = 60  # simulated recordings that are looked at, at most, for each one that is measured


@dataclass
class Case:
    """A recording in mV, with the findings that it has and, where they are known, their places."""

    record: str
    patient: str
    batch: dict[str, torch.Tensor]  # input_values (1, 12, samples), lead_mask (1, 12)
    findings: dict[str, Place | None]


def simulated_cases(records: int) -> Iterator[Case]:
    """Yields simulated recordings that have a finding with a place, each finding about as often as the others."""
    quota, counts, given = -(-records // len(PLACES)), Counter(), 0
    for item in corpus.plan(records=SCANNED * records, seed=WORLD, variety="full").to_pylist():
        if given == records or all(counts[name] >= quota for name in PLACES):
            return
        signal, truth, record = corpus.simulated(item)
        places = {name: place_of(name, truth) for name in record.labels["findings"] if counts[name] < quota}
        if places := {name: place for name, place in places.items() if place is not None}:
            counts.update(places.keys())
            given += 1
            batch = {"input_values": torch.from_numpy(signal)[None], "lead_mask": torch.ones(1, 12, dtype=torch.bool)}
            yield Case(record.record, record.patient, batch, places)


def stored_cases(data: LabelledSplits, split: str, processor, records: int, seed: int) -> Iterator[Case]:
    """Yields recordings of prepared folders, drawn with the seed, with the classes that each is labelled with."""
    rows, targets = data.rows[split], data.targets[split]
    some = np.flatnonzero(targets.any(axis=1))
    chosen = np.sort(np.random.default_rng(seed).permutation(some)[:records])
    collate = MelpCollator(processor, text=False)
    for index in chosen:
        row = rows[int(index)]
        names = [data.classes[number] for number in np.flatnonzero(targets[index])]
        territories = {name: TERRITORIES.get(finding_of(data.label_set, name)) for name in names}
        places = {name: leads and Place((), frozenset(leads)) for name, leads in territories.items()}
        yield Case(row["record"], row["patient"], collate([row]), places)


def measure_case(
    model, processor, case: Case, prompts: dict[str, list[str]], methods, seed: int
) -> dict[tuple[str, str], Measured]:
    """Measures every method on every finding of a case: `{(method, finding): Measured}`."""
    names = list(case.findings)
    rows = [(number, text) for number, name in enumerate(names) for text in prompts[name]]
    encoded = processor(text=[text for _, text in rows], return_tensors="pt").to(model.device)
    texts, sentences = embed_texts(model, **encoded, groups=[number for number, _ in rows])
    config, signal, mask = model.config.ecg_config, case.batch["input_values"], case.batch["lead_mask"]
    recording = Recording(model, scale_ecg(signal.clone(), mask, config.scaling), mask, texts)
    beats = find_beats(signal[0].numpy(), config.sampling_rate, mask[0].numpy())
    seed = seed + name_hash(case.record)
    maps = attributions(recording, sentences, methods, beats, seed)
    return {
        (method, name): measure(recording, maps[method][number], number, case.findings[name], DRAWS, seed)
        for method in methods
        for number, name in enumerate(names)
    }


def run(settings: Faithfulness, runtime: Runtime) -> Results:
    """Measures attributions on simulated recordings, and on those of --data; see `Faithfulness`."""
    models = load_models(settings, runtime, text=True)
    methods = [*settings.methods, RANDOM]
    processor = models["model"][1]
    known = load_yaml(PROMPTS)["findings"]
    sources = {SIMULATED: (simulated_cases(settings.records), known)}
    if settings.data:
        data = _open(settings)
        cases = stored_cases(data, settings.split, processor, settings.records, settings.seed)
        sources[STORED] = cases, load_prompts(PROMPTS, data.label_set, data.classes)
    parts = []
    for source, (cases, prompts) in sources.items():
        for case in tqdm(cases, desc=source, unit="recording", total=settings.records, disable=runtime.rank != 0):
            for name, pair in models.items():
                measured = measure_case(*pair, case, prompts, methods, settings.seed)
                parts += [_row(source, case, name, *key, one) for key, one in measured.items()]
    frame = pd.DataFrame(parts)
    results = Results.start(settings, None, data=settings.data)
    results.database = ", ".join([*([results.database] if results.database else []), "synthetic"])
    results.next = shlex.join(["python", "-m", "melp.explain", "FILE", "--model", settings.model])
    results.records = frame.drop_duplicates(["source", "record"]).shape[0]
    results.patients = frame.drop_duplicates(["source", "patient"]).shape[0]
    for source in sources:
        _add_faithfulness(results, settings, source, frame[frame["source"] == source], list(models))
    simulated = frame[frame["source"] == SIMULATED]
    _add_localisation(results, settings, "Localisation, simulated", simulated, list(models))
    if settings.data:
        stored = frame[(frame["source"] != SIMULATED) & frame["lead_chance"].notna()]
        _add_localisation(results, settings, "Leads of territories, data", stored, list(models), " data")
    _add_findings(results, settings, simulated, list(models))
    results.notes += _notes(settings)
    results.predictions = frame.drop(columns=["deletion_curve", "insertion_curve"]).assign(target=1)
    curves = {source: _curves(part[part["model"] == "model"]) for source, part in frame.groupby("source", sort=False)}
    results.figures["faithfulness"] = lambda: draw.faithfulness(SHARES, curves)
    return results


def _open(settings: Faithfulness) -> LabelledSplits:
    splits, prompts = load_folders(settings.data), load_yaml(PROMPTS)
    label_set = settings.label_set
    if label_set is None:
        from melp.data.prepared import label_sets

        sets = label_sets(next(iter(splits.values())))
        label_set = next((name for name in sets if name in prompts), None)
        if label_set is None:
            raise ValueError(f"{' '.join(settings.data)}: no label set has prompts; it has {', '.join(sets)}.")
    return LabelledSplits.select(splits, [settings.split], label_set, " ".join(settings.data))


def _row(source: str, case: Case, model: str, method: str, finding: str, one: Measured) -> dict:
    values = {entry.name: getattr(one, entry.name) for entry in fields(one) if entry.name != "truth"}
    curves = {f"{name}_curve": values.pop(name) for name in ("deletion", "insertion")}
    return {
        "source": source,
        "record": case.record,
        "patient": case.patient,
        "label": finding,
        "model": model,
        "method": method,
        **values,
        "deletion": float(one.deletion.mean()),
        "insertion": float(one.insertion.mean()),
        "insertion_less_deletion": float(one.insertion.mean() - one.deletion.mean()),
        **one.truth,
        **curves,
    }


def _curves(part: pd.DataFrame) -> dict[str, dict]:
    """Returns the mean curves of each method, with the scores of the whole and of the blank recording."""
    return {
        method: {
            "deletion": np.stack(list(rows["deletion_curve"])).mean(axis=0),
            "insertion": np.stack(list(rows["insertion_curve"])).mean(axis=0),
            "score": rows["score"].mean(),
            "blank": rows["blank"].mean(),
        }
        for method, rows in part.groupby("method", sort=False)
    }


# ------------------------------------------------------------------------------------------------------------- tables


def _figure(settings: Faithfulness, rows: pd.DataFrame, column: str) -> dict | None:
    """Returns the mean of a column over recordings and findings, with its interval over patients."""
    rows = rows[rows[column].notna()]
    if rows.empty:
        return None
    values = rows[column].astype(float).to_numpy()
    return with_interval(rows["patient"].to_numpy(), weighted_mean(values), settings.samples, settings.seed)


def _add_rows(
    results: Results, settings: Faithfulness, title: str, part: pd.DataFrame, models, columns: dict, place=""
):
    """Adds a table with a row per attribution; its figures, and those of all columns of each model, as metrics.

    Args:
        columns: name -> heading, and whether other models than the first show it.
    """
    lines = []
    for method in [*settings.methods, RANDOM]:
        line = [method + (" (default)" if method == METHOD else "")]
        for name in models:
            rows = part[(part["method"] == method) & (part["model"] == name)]
            suffix = "" if name == "model" else f"_{key_of(name)}"
            for column, (_, everyone) in columns.items():
                figure = _figure(settings, rows, column)
                results.add(f"{column}{suffix}{place} {method}", figure)
                if everyone or name == "model":
                    line.append(with_bounds(figure))
        lines.append(line)
    header = [heading for heading, _ in columns.values()]
    for name in models[1:]:
        header += [f"{heading}, {name}" for heading, everyone in columns.values() if everyone]
    results.tables[title] = table(["attribution", *header], lines)


def _add_faithfulness(results: Results, settings: Faithfulness, source: str, part: pd.DataFrame, models):
    place = "" if source == SIMULATED else " data"
    columns = {
        "deletion": ("deletion (low is good)", False),
        "insertion": ("insertion (high is good)", False),
        "insertion_less_deletion": ("insertion less deletion", True),
        "faithful": ("faithful", True),
    }
    _add_rows(results, settings, f"Faithfulness, {source}", part, models, columns, place)
    for method in settings.methods:
        rows = part[(part["method"] == method) & (part["model"] == "model")]
        for column in ("removed_s", "score", "without", "without_elsewhere"):
            results.add(f"{column}{place} {method}", _figure(settings, rows, column))
    own = {m: results.metrics[f"insertion_less_deletion{place} {m}"]["value"] for m in settings.methods}
    best = max(own, key=own.get)
    said = {c: results.metrics[f"{c}{place} {best}"]["value"] for c in ("removed_s", "score", "without")}
    others = results.metrics[f"without_elsewhere{place} {best}"]["value"]
    count = part.drop_duplicates(["record", "label"]).shape[0]
    results.notes.append(
        f"{source}: {count:,} findings of {part['record'].nunique():,} recordings. Best by insertion less deletion: "
        f"{best}. On average it shows {said['removed_s']:.1f} s; without them the score falls from "
        f"{said['score']:.3f} to {said['without']:.3f}, without as much elsewhere to {others:.3f}."
    )


def _add_localisation(results: Results, settings: Faithfulness, title: str, part: pd.DataFrame, models, place=""):
    columns = {
        "pointing": ("strongest 0.2 s in the truth", True),
        "inside": ("evidence in it", True),
        "chance": ("time in it", False),
        "lead_pointing": ("strongest lead in its leads", False),
        "leads_inside": ("evidence in its leads", True),
        "lead_chance": ("its leads among twelve", False),
    }
    columns = {column: said for column, said in columns.items() if part[column].notna().any()}
    if columns:
        _add_rows(results, settings, title, part, models, columns, place)


def _add_findings(results: Results, settings: Faithfulness, part: pd.DataFrame, models):
    """Adds the default attribution's localisation by finding."""
    method = METHOD if METHOD in settings.methods else settings.methods[0]
    lines = []
    for finding, rows in part[part["method"] == method].groupby("label", sort=False):
        by_model = {name: rows[rows["model"] == name] for name in models}
        one, row = by_model["model"], {"label": finding, "records": len(by_model["model"])}
        figures = {column: _figure(settings, one, column) for column in (*LOCATED, "score", "faithful")}
        row |= {column: figure and figure["value"] for column, figure in figures.items()}
        results.classes.append(row)
        untrained = [
            with_bounds(_figure(settings, by_model[name], column))
            for name in models[1:]
            for column in ("pointing", "inside")
        ]
        columns = ("score", "pointing", "inside", "chance", "leads_inside", "lead_chance", "faithful")
        lines.append([finding, len(one), *(with_bounds(figures[column]) for column in columns), *untrained])
    header = ["finding", "recordings", "score", "pointing", "in the truth", "time in it", "in its leads", "its leads"]
    header += ["faithful", *(f"{what}, {name}" for name in models[1:] for what in ("pointing", "in the truth"))]
    results.tables["Localisation by finding, simulated"] = table(header, lines)
    results.notes.append(f"Localisation by finding: of {method}.")


def _notes(settings: Faithfulness) -> list[str]:
    return [
        "Scores are cosines. What is removed gives way to each lead's own level (running median), faded over 20 ms.",
        f"Deletion, insertion: the mean score without the strongest {', '.join(f'{s:.0%}' for s in SHARES)} of the "
        "time, and with them alone.",
        f"Faithful: removing what is shown costs a tenth of the score or more, and more than each of {DRAWS} removals "
        "of as much elsewhere.",
        f"Simulated: --records recordings of the simulator's world {WORLD}, their findings about equally often. "
        "Truth: premature beats, pauses, blocked P waves, delta waves, stimuli, broad QRS, ST and T, within 0.1 s.",
        "attention and contribution know no leads: all count alike.",
        "Faithful to its own score is an untrained model too; only where it points tells it from a trained one.",
    ]
