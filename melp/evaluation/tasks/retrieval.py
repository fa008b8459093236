"""Retrieval: the report of a recording among all reports, and the recording of a report among all recordings."""

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from melp.data.prepared import with_reports
from melp.evaluation.classification import filled_split
from melp.evaluation.encoding import encode
from melp.evaluation.folders import load_folders
from melp.evaluation.models import Runtime, load_models
from melp.evaluation.ranking import Ranking, add_rankings, rank
from melp.evaluation.results import Results, key_of
from melp.evaluation.settings import Retrieval
from melp.names import report_hash

DIRECTIONS = ("ecg to report", "report to ecg")


def distinct_reports(reports: list[str]) -> tuple[list[str], np.ndarray]:
    """Returns the reports that say different things, and which of them each report is; see `report_hash`."""
    hashes = [report_hash(report) for report in reports]
    first = dict(zip(reversed(hashes), reversed(reports), strict=True))
    number = {value: index for index, value in enumerate(dict.fromkeys(hashes))}
    return [first[value] for value in number], np.array([number[value] for value in hashes])


def embed_texts(model, processor, texts: list[str], batch_size: int) -> np.ndarray:
    """Returns (texts, projection_dim), L2-normalised."""
    embeddings = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(texts), batch_size), desc="reports", unit="batch"):
            inputs = processor(text=texts[start : start + batch_size], return_tensors="pt").to(model.device)
            features = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
            embeddings.append(features.float().cpu().numpy())
    return np.concatenate(embeddings)


def rankings(ecg: np.ndarray, texts: np.ndarray, text_index: np.ndarray) -> dict[str, dict[str, Ranking]]:
    """Ranks in both directions and by both rules: `{direction: {"identical" or "naive": Ranking}}`.

    Args:
        ecg: (recordings, width); texts: (distinct reports, width); text_index: (recordings,) which one is its report.
    """
    own = np.arange(len(ecg))
    ranked = {direction: {} for direction in DIRECTIONS}
    for rule, number in (("identical", text_index), ("naive", own)):
        ranked[DIRECTIONS[0]][rule] = rank(ecg, texts, number, number, row_of=text_index)
        ranked[DIRECTIONS[1]][rule] = rank(texts[text_index], ecg, number, number)
    return ranked


def run(settings: Retrieval, runtime: Runtime) -> Results:
    """Measures retrieval in both directions; see `Retrieval`."""
    rows = filled_split(load_folders(settings.data), settings.split, settings.where)
    with_text = with_reports(rows)
    if len(with_text) < 2:
        raise ValueError(
            f"{settings.where}, split {settings.split!r}: {len(with_text)} recordings have a report; two are needed."
        )
    distinct, text_index = distinct_reports(list(with_text["report"]))
    ranked = {}
    for name, (network, reader) in load_models(settings, runtime, text=True).items():
        ecg = encode(network, reader, with_text, runtime, f"{settings.split} ({name})")["rhythm"]
        ranked[name] = rankings(ecg, embed_texts(network, reader, distinct, runtime.batch_size), text_index)

    results = Results.start(settings, with_text)
    patients = list(with_text["patient"])
    for direction in DIRECTIONS:
        key = direction.replace(" ", "_") + "_"
        by_model = {name: both[direction]["identical"] for name, both in ranked.items()}
        add_rankings(results, settings, f"{direction}, reports that say the same are hits", patients, by_model, key)
        naive = {name: both[direction]["naive"] for name, both in ranked.items()}
        add_rankings(results, settings, f"{direction}, naive rule", patients, naive, f"{key}naive_")
    results.notes.append(
        f"{len(with_text):,} recordings with {len(distinct):,} distinct reports; recordings without a report are left "
        f"out ({len(rows) - len(with_text):,}). Draws of patients change the queries, not the candidates."
    )
    results.predictions = _predictions(with_text, ranked)
    return results


def _predictions(rows, ranked: dict[str, dict[str, dict[str, Ranking]]]) -> pd.DataFrame:
    """Returns a row per query: `label` the direction, `target` the number of right candidates, `score` the rank.

    `naive_rank` is that by the naive rule; both again with the name of each further model.
    """
    frames = []
    for direction in DIRECTIONS:
        columns = {"record": rows["record"], "patient": rows["patient"], "label": direction}
        columns["target"] = ranked["model"][direction]["identical"].hits
        for name, both in ranked.items():
            suffix = "" if name == "model" else f"_{key_of(name)}"
            columns[f"score{suffix}"] = both[direction]["identical"].ranks
            columns[f"naive_rank{suffix}"] = both[direction]["naive"].ranks
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)
