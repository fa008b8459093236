"""Retrieval: the report of a recording among all reports, and the recording of a report among all recordings.

R@k: the right one is among the first k by similarity. Machine reports repeat, and an identical report is as right as
the recording's own: it counts as a hit. Beside it stands the naive rule of the literature, by which only the
recording's own report (or recording) is right and identical ones stand in its way, in random order.
"""

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from melp.data.prepared import get_split, with_reports
from melp.evaluation.folders import load_folders
from melp.evaluation.models import compared, encode
from melp.evaluation.options import add_common
from melp.evaluation.ranking import Ranking, add_rankings, rank
from melp.evaluation.results import Results, key_of

NAME, NEXT = "retrieval", "report"
DIRECTIONS = ("ecg to report", "report to ecg")


add_arguments = add_common


def same_text(reports: list[str]) -> tuple[list[str], np.ndarray]:
    """The distinct reports, and which of them each report is; case and white space make no difference."""
    plain = [" ".join(report.lower().split()) for report in reports]
    number = {text: index for index, text in enumerate(dict.fromkeys(plain))}
    first = dict(zip(reversed(plain), reversed(reports), strict=True))
    return [first[text] for text in number], np.array([number[text] for text in plain])


def embed_texts(model, processor, texts: list[str], batch_size: int) -> np.ndarray:
    """(texts, projection_dim), L2-normalised."""
    embeddings = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(texts), batch_size), desc="reports", unit="batch"):
            inputs = processor(text=texts[start : start + batch_size], return_tensors="pt").to(model.device)
            features = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
            embeddings.append(features.float().cpu().numpy())
    return np.concatenate(embeddings)


def rankings(ecg: np.ndarray, texts: np.ndarray, text_of: np.ndarray) -> dict[str, dict[str, Ranking]]:
    """`{direction: {"identical" or "naive": Ranking}}`.

    Args:
        ecg: (recordings, width); texts: (distinct reports, width); text_of: (recordings,) which one is its report.
    """
    own = np.arange(len(ecg))
    found = {direction: {} for direction in DIRECTIONS}
    for rule, number in (("identical", text_of), ("naive", own)):
        found[DIRECTIONS[0]][rule] = rank(ecg, texts, number, number, row_of=text_of)
        found[DIRECTIONS[1]][rule] = rank(texts[text_of], ecg, number, number)
    return found


def run(options) -> Results:
    where = " ".join(options.data)
    rows = get_split(load_folders(options.data), options.split, where)
    with_text = with_reports(rows)
    if len(with_text) < 2:
        raise ValueError(f"{where}, split {options.split!r}: {len(with_text)} recordings have a report.")
    distinct, text_of = same_text(list(with_text["report"]))
    runtime, found = options.runtime, {}
    for name, (network, reader) in compared(options, text=True).items():
        ecg = encode(network, reader, with_text, runtime, f"{options.split} ({name})")["rhythm"]
        found[name] = rankings(ecg, embed_texts(network, reader, distinct, runtime.batch_size), text_of)

    results = Results.of(NAME, options, with_text)
    patients = list(with_text["patient"])
    for direction in DIRECTIONS:
        key = direction.replace(" ", "_") + "_"
        by_model = {name: of[direction]["identical"] for name, of in found.items()}
        add_rankings(results, options, f"{direction}, identical reports are hits", patients, by_model, key)
        naive = {name: of[direction]["naive"] for name, of in found.items()}
        add_rankings(results, options, f"{direction}, naive rule", patients, naive, f"{key}naive_")
    results.notes.append(
        f"{len(with_text):,} recordings with {len(distinct):,} distinct reports; recordings without a report are left "
        f"out ({len(rows) - len(with_text):,}). Draws of patients change the queries, not the candidates."
    )
    results.predictions = _predictions(with_text, found)
    return results


def _predictions(rows, found: dict[str, dict[str, dict[str, Ranking]]]) -> pd.DataFrame:
    """A line a query: `label` the direction, `target` the number of right candidates, `score` the rank.

    `naive_rank` is that by the naive rule; both again with the name of each further model.
    """
    frames = []
    for direction in DIRECTIONS:
        columns = {"record": rows["record"], "patient": rows["patient"], "label": direction}
        columns["target"] = found["model"][direction]["identical"].hits
        for name, of_model in found.items():
            suffix = "" if name == "model" else f"_{key_of(name)}"
            columns[f"score{suffix}"] = of_model[direction]["identical"].ranks
            columns[f"naive_rank{suffix}"] = of_model[direction]["naive"].ranks
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)
