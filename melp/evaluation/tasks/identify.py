"""Patient identification: whose recording is it, among one earlier recording of each patient?

As in the paper's appendix: a gallery holds one recording a patient, the probes are other recordings of the same
patients, and the nearest in the gallery by the cosine of the probing features (`probe_embeds`) names the patient.
Top-k: the patient is among the first k.

Pairs are those of the published tables with `--splits` (`valid_gallery.csv` and `valid_probe.csv`, which name
recordings of PTB-XL by `filename_hr`, patients by `label`, and of each recording the first `length` samples at 500 Hz:
5 s), or two recordings drawn of each patient of the split who has several, whole.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict, concatenate_datasets

from melp.data.prepared import get_split
from melp.databases.published import record_key
from melp.evaluation.folders import load_folders
from melp.evaluation.models import Change, compared, encode, first_samples
from melp.evaluation.options import add_common
from melp.evaluation.ranking import Ranking, add_rankings, rank
from melp.evaluation.results import Results, key_of

NAME, NEXT = "identify", "linear-probe"


def add_arguments(parser):
    add_common(parser)
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


def published_pairs(splits: DatasetDict, folder: str, where: str) -> tuple[Dataset, Dataset, int, Change]:
    """The gallery and probe recordings of the published tables that the data have.

    Returns:
        both, how many pairs the tables have, and the change that leaves of each recording its first `length` samples.

    Raises:
        ValueError: naming the table that is missing or has no such columns, or when fewer than two pairs are there.
    """
    rows = concatenate_datasets(list(splits.values()))
    row_of = {record_key(record): index for index, record in enumerate(rows["record"])}
    tables, lengths = {}, {}
    for name in ("gallery", "probe"):
        files = [path for end in (".csv", ".csv.gz") if (path := Path(folder) / f"valid_{name}{end}").is_file()]
        if not files:
            raise ValueError(f"--splits {folder} has no valid_{name}.csv (or .csv.gz).")
        table = pd.read_csv(files[0])
        if not {"filename_hr", "length", "label"} <= set(table):
            raise ValueError(f"{files[0]} needs the columns filename_hr, length and label; it has {', '.join(table)}.")
        table["record"] = table["filename_hr"].map(record_key)
        tables[name] = table.set_index("label")["record"]
        lengths |= table.set_index("record")["length"].astype(int).to_dict()
    pairs = pd.DataFrame(tables)
    found = pairs.map(row_of.get).dropna().astype(int)
    if len(found) < 2:
        raise ValueError(
            f"{where} has {len(found)} of the {len(pairs)} pairs of {folder}: they are recordings of the whole PTB-XL."
        )
    gallery, probes = rows.select(found["gallery"]), rows.select(found["probe"])
    counts = {record: lengths[record_key(record)] for part in (gallery, probes) for record in part["record"]}
    change = Change(f"first samples {sorted(counts.items())}", partial(first_samples, count=counts))
    return gallery, probes, len(pairs), change


def run(options) -> Results:
    splits, where, change = load_folders(options.data), " ".join(options.data), None
    if options.splits:
        gallery, probes, published, change = published_pairs(splits, options.splits, where)
        note = f"{len(probes):,} of the {published:,} pairs of the tables in {options.splits}, whatever their split."
    else:
        rows = get_split(splits, options.split, where)
        gallery, probes = drawn_pairs(rows, options.seed, f"{where}, split {options.split!r}")
        note = "One gallery and one probe recording of each patient with several, drawn with --seed."
    found = {}
    for name, (network, reader) in compared(options).items():
        parts = [
            encode(network, reader, part, options.runtime, f"{what} ({name})", change)["probe"]
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
        | {f"score_{key_of(name)}": of.ranks for name, of in found.items() if name != "model"}
    )
    return results


def identification(gallery: np.ndarray, probes: np.ndarray) -> Ranking:
    """Ranks of the patients: row i of both (patients, width) is the same patient."""
    gallery, probes = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (gallery, probes))
    own = np.arange(len(probes))
    return rank(probes, gallery, own, own)
