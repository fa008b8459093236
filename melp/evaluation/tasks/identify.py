"""Patient identification: whose recording is it, among one earlier recording of each patient?"""

from functools import partial

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict, concatenate_datasets

from melp.databases.published import record_key
from melp.evaluation.classification import filled_split
from melp.evaluation.encoding import SignalTransform, encode, first_samples
from melp.evaluation.folders import load_folders
from melp.evaluation.models import Runtime, load_models
from melp.evaluation.ranking import Ranking, add_rankings, rank
from melp.evaluation.results import Results, key_of
from melp.evaluation.settings import Identify, pair_tables


def drawn_pairs(rows: Dataset, seed: int, where: str) -> tuple[Dataset, Dataset]:
    """Draws a gallery and a probe recording of each patient who has several; in the same order.

    Raises:
        ValueError: when fewer than two patients have several recordings.
    """
    frame = pd.DataFrame({"row": np.arange(len(rows)), "patient": rows["patient"]})
    frame = frame[frame.groupby("patient")["row"].transform("size") > 1]
    pairs = [group.sample(2, random_state=seed + n)["row"] for n, (_, group) in enumerate(frame.groupby("patient"))]
    if len(pairs) < 2:
        raise ValueError(
            f"{where}: {len(pairs)} patient(s) with several recordings; two are needed. Choose "
            "another --split or database, or --splits with the published pairs."
        )
    gallery, probes = np.array(pairs).T
    return rows.select(gallery), rows.select(probes)


def published_pairs(splits: DatasetDict, folder: str, where: str) -> tuple[Dataset, Dataset, int, SignalTransform]:
    """Selects the gallery and probe recordings of the published tables that the data have.

    Returns:
        both, how many pairs the tables have, and the transform that leaves each recording's first `length` samples.

    Raises:
        ValueError: naming the table that is missing or has no such columns, or when fewer than two pairs are there.
    """
    rows = concatenate_datasets(list(splits.values()))
    row_of = {record_key(record): index for index, record in enumerate(rows["record"])}
    tables, lengths = {}, {}
    for name, file in pair_tables(folder).items():
        table = pd.read_csv(file)
        if not {"filename_hr", "length", "label"} <= set(table):
            raise ValueError(f"{file} needs the columns filename_hr, length and label; it has {', '.join(table)}.")
        table["record"] = table["filename_hr"].map(record_key)
        tables[name] = table.set_index("label")["record"]
        lengths |= table.set_index("record")["length"].astype(int).to_dict()
    pairs = pd.DataFrame(tables)
    present = pairs.map(row_of.get).dropna().astype(int)
    if len(present) < 2:
        raise ValueError(
            f"{where} has {len(present)} of the {len(pairs)} pairs of {folder}: they are recordings of PTB-XL."
        )
    gallery, probes = rows.select(present["gallery"]), rows.select(present["probe"])
    counts = {record: lengths[record_key(record)] for part in (gallery, probes) for record in part["record"]}
    transform = SignalTransform(f"first samples {sorted(counts.items())}", partial(first_samples, count=counts))
    return gallery, probes, len(pairs), transform


def run(settings: Identify, runtime: Runtime) -> Results:
    """Measures identification; see `Identify`."""
    splits, transform = load_folders(settings.data), None
    if settings.splits:
        gallery, probes, published, transform = published_pairs(splits, settings.splits, settings.where)
        note = f"{len(probes):,} of the {published:,} pairs of the tables in {settings.splits}, whatever their split."
    else:
        rows = filled_split(splits, settings.split, settings.where)
        gallery, probes = drawn_pairs(rows, settings.seed, f"{settings.where}, split {settings.split!r}")
        note = "One gallery and one probe recording of each patient with several, drawn with --seed."
    ranked = {}
    for name, (network, reader) in load_models(settings, runtime).items():
        parts = [
            encode(network, reader, part, runtime, f"{kind} ({name})", transform)["probe"]
            for kind, part in (("gallery", gallery), ("probes", probes))
        ]
        ranked[name] = identification(*parts)
    results = Results.start(settings, probes)
    results.notes += [note, "Draws of patients change the probes, not the gallery."]
    patients = list(probes["patient"])
    add_rankings(results, settings, f"{len(probes):,} patients", patients, ranked)
    results.predictions = pd.DataFrame(
        {
            "record": probes["record"],
            "patient": patients,
            "label": "rank of the patient",
            "target": 1,
            "score": ranked["model"].ranks,
            "gallery_record": gallery["record"],
        }
        | {f"score_{key_of(name)}": ranking.ranks for name, ranking in ranked.items() if name != "model"}
    )
    return results


def identification(gallery: np.ndarray, probes: np.ndarray) -> Ranking:
    """Ranks the patients: row i of both (patients, width) is the same patient."""
    gallery, probes = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (gallery, probes))
    own = np.arange(len(probes))
    return rank(probes, gallery, own, own)
