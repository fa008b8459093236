"""Patient identification: whose recording is it, among one earlier recording of each patient?

As in the paper's appendix: a gallery holds one recording a patient, the probes are other recordings of the same
patients, and the nearest in the gallery by the cosine of the probing features (`probe_embeds`) names the patient.
Top-k: the patient is among the first k.

Pairs are those of the published tables with `--splits` (`valid_gallery.csv` and `valid_probe.csv`, which name
recordings of PTB-XL by `filename_hr` and patients by `label`), or two recordings drawn of each patient of the split
who has several. Whole recordings are encoded; the published tables name their first five seconds.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict, concatenate_datasets

from data import get_split, load_prepared
from databases.published import record_key
from evaluation.models import encode, load_model, untrained_like
from evaluation.options import add_against, add_common
from evaluation.ranking import Ranking, add_rankings, rank
from evaluation.results import Results

NAME = "identify"


def add_arguments(parser):
    add_common(parser)
    add_against(parser)
    parser.add_argument("--splits", metavar="DIR", help="folder of the published gallery and probe tables")


def drawn_pairs(rows: Dataset, seed: int, where: str) -> tuple[Dataset, Dataset]:
    """A gallery and a probe recording of each patient who has several, drawn with a seed; in the same order.

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


def published_pairs(splits: DatasetDict, folder: str, where: str) -> tuple[Dataset, Dataset, int]:
    """The gallery and probe recordings of the published tables that the data have, and how many pairs there were.

    Raises:
        ValueError: naming the table that is missing or has no such columns, or when fewer than two pairs are there.
    """
    rows = concatenate_datasets(list(splits.values()))
    row_of = {record_key(record): index for index, record in enumerate(rows["record"])}
    tables = {}
    for name in ("gallery", "probe"):
        files = [path for end in (".csv", ".csv.gz") if (path := Path(folder) / f"valid_{name}{end}").is_file()]
        if not files:
            raise ValueError(f"--splits {folder} has no valid_{name}.csv (or .csv.gz).")
        table = pd.read_csv(files[0])
        if not {"filename_hr", "label"} <= set(table):
            raise ValueError(f"{files[0]} needs the columns filename_hr and label; it has {', '.join(table)}.")
        tables[name] = table.set_index("label")["filename_hr"].map(record_key)
    pairs = pd.DataFrame(tables)
    found = pairs.map(row_of.get).dropna().astype(int)
    if len(found) < 2:
        raise ValueError(
            f"{where} has {len(found)} of the {len(pairs)} pairs of {folder}: they are recordings of the whole PTB-XL."
        )
    return rows.select(found["gallery"]), rows.select(found["probe"]), len(pairs)


def run(options) -> Results:
    splits = load_prepared(options.data)
    where = f"{options.data}, split {options.split!r}"
    if options.splits:
        gallery, probes, published = published_pairs(splits, options.splits, str(options.data))
        note = f"{len(probes):,} of the {published:,} pairs of the tables in {options.splits}, whatever their split."
    else:
        gallery, probes = drawn_pairs(get_split(splits, options.split, options.data), options.seed, where)
        note = "One gallery and one probe recording of each patient with several, drawn with --seed."
    runtime = options.runtime
    model, extractor = load_model(options.model, runtime.device)
    models = {"model": (model, extractor), "untrained": (untrained_like(options.model, runtime.device), extractor)}
    if options.against:
        models["other"] = load_model(options.against, runtime.device)
    found = {}
    for name, (network, reader) in models.items():
        parts = [
            encode(network, reader, part, runtime, f"{what} ({name})")["probe"]
            for what, part in (("gallery", gallery), ("probes", probes))
        ]
        found[name] = identification(*parts)
    results = Results.of(NAME, options, probes)
    results.notes += [note, "Draws of patients change the probes, not the gallery."]
    patients = list(probes["patient"])
    add_rankings(results, options, f"{len(probes):,} patients", patients, found)
    results.predictions = pd.DataFrame(
        {
            "record": probes["record"],
            "patient": patients,
            "label": "rank of the patient",
            "target": 1,
            "score": found["model"].ranks,
            "gallery_record": gallery["record"],
        }
    )
    results.next = f"python evaluate.py linear-probe --model {options.model} --data {options.data}"
    return results


def identification(gallery: np.ndarray, probes: np.ndarray) -> Ranking:
    """Ranks of the patients: row i of both (patients, width) is the same patient."""
    gallery, probes = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (gallery, probes))
    own = np.arange(len(probes))
    return rank(probes, gallery, own, own)
