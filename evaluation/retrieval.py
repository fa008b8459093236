"""Retrieval: the report of a recording among all reports, and the recording of a report among all recordings.

R@k: the right one is among the first k by similarity. Machine reports repeat, and an identical report is as right as
the recording's own: it counts as a hit. Beside it stands the naive rule of the literature, by which only the
recording's own report (or recording) is right and identical ones stand in its way, in random order.
"""

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from data import get_split, load_prepared, with_reports
from evaluation.models import encode, load_model, require_text, untrained_like
from evaluation.options import add_against, add_common
from evaluation.ranking import Ranking, add_rankings, rank
from evaluation.results import Results

NAME = "retrieval"
DIRECTIONS = ("ecg to report", "report to ecg")


def add_arguments(parser):
    add_common(parser)
    add_against(parser)


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
    rows = get_split(load_prepared(options.data), options.split, options.data)
    with_text = with_reports(rows)
    if len(with_text) < 2:
        raise ValueError(f"{options.data}, split {options.split!r}: {len(with_text)} recordings have a report.")
    distinct, text_of = same_text(list(with_text["report"]))
    runtime = options.runtime
    model, processor = load_model(options.model, runtime.device)
    require_text(model, options.model)
    models = {"model": (model, processor), "untrained": (untrained_like(options.model, runtime.device), processor)}
    if options.against:
        other, other_processor = load_model(options.against, runtime.device)
        models["other"] = (require_text(other, options.against), other_processor)
    found = {}
    for name, (network, reader) in models.items():
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
    results.predictions = _predictions(with_text, found["model"])
    results.next = f"python evaluate.py report --model {options.model} --data {options.data}"
    return results


def _predictions(rows, found: dict[str, dict[str, Ranking]]) -> pd.DataFrame:
    """A line a query: `label` the direction, `target` the number of right candidates, `score` the rank."""
    return pd.concat(
        pd.DataFrame(
            {
                "record": rows["record"],
                "patient": rows["patient"],
                "label": direction,
                "target": by_rule["identical"].hits,
                "score": by_rule["identical"].ranks,
                "naive_rank": by_rule["naive"].ranks,
            }
        )
        for direction, by_rule in found.items()
    )
