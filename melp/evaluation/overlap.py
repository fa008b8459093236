"""Finds what a model was trained on among what it is measured on: by its card, and by the recordings themselves."""

from collections.abc import Iterable
from pathlib import Path

from melp.databases import CHALLENGE_SOURCES
from melp.files import read_json
from melp.sources import fetch, own_card

# Names under which a card or a command knows a database -> ours; compared in lower case, letters and digits only.
NAMES = {
    "ptbxl": ("ptbxl", "ptb-xl", "physionet/ptb-xl"),
    "cpsc2018": ("cpsc2018", "icbeb", "icbeb2018", "cpsc"),
    "csn": ("csn", "csn-fixed", "chapman", "chapman-shaoxing", "ningbo", "chapman-shaoxing-ningbo", "ecg-arrhythmia"),
    "georgia": ("georgia", "g12ec"),
    "mimic": ("mimic", "mimic-iv-ecg", "mimic-ecg"),
    "code15": ("code15", "code-15", "code-15%"),
    "challenge2021": (
        "challenge2021",
        "challenge",
        "cinc2021",
        "physionet2021",
        "challenge-2021",
        "physionet/challenge-2021",
    ),
    "synthetic": ("synthetic",),
}


def _letters(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def known_name(name: str) -> str:
    """Returns our name of a database; one that is not known is its own, in letters and digits."""
    plain = _letters(name.split("/")[-1])
    for ours, others in NAMES.items():
        if plain in {_letters(other.split("/")[-1]) for other in others}:
            return ours
    return plain


# A mixture holds these.
CONTAINS = {"challenge2021": {known_name(source) for source in CHALLENGE_SOURCES}}


def trained_on(model: str) -> list[str]:
    """Reads the databases that the model's card names under `datasets`; empty where it says nothing."""
    from huggingface_hub.repocard import metadata_load

    card = own_card(fetch(model))
    metadata = (metadata_load(card) if card else None) or {}
    named = metadata.get("datasets") or []
    return [named] if isinstance(named, str) else [str(name) for name in named]


def overlaps(model: str, databases: list[str]) -> list[str]:
    """Returns a warning for each database that the model's card says it was trained on, itself or in a mixture."""
    warnings = []
    for named in trained_on(model):
        ours = known_name(named)
        for database in databases:
            tested = known_name(database)
            if tested == ours:
                warnings.append(
                    f"WARNING: the card of {model} says that it was trained on {named}, tested here: the figures hold "
                    "only for recordings that were kept out of training."
                )
            elif tested in CONTAINS.get(ours, ()) or ours in CONTAINS.get(tested, ()):
                held, mixture = (tested, named) if tested in CONTAINS.get(ours, ()) else (ours, database)
                warnings.append(
                    f"WARNING: the card of {model} says that it was trained on {named}; {mixture} contains {held}, so "
                    f"recordings of the test on {database} may have been seen in training."
                )
    return warnings


def leaks(trained: Iterable, tested, whose: str) -> list[str]:
    """Returns a warning where recordings of a test are, sample for sample, among those of a training.

    Args:
        trained: splits of prepared folders.
        tested: the measured rows.
        whose: training it was, in words.
    """
    from melp.duplicates.search import shared_tracings

    pairs = [pair for rows in trained for pair in shared_tracings(rows, tested)]
    if not pairs:
        return []
    records = len({record for _, record in pairs})
    (one, other) = pairs[0]
    return [
        f"WARNING: {records:,} of the {len(tested):,} recordings tested are, sample for sample, in the training data "
        f"of {whose} (the first is {other}, there {one}): `python -m melp.duplicates` lists them."
    ]


def leaks_from_run(model: str, tested) -> list[str]:
    """Returns a warning as `leaks`, for a model in the folder of a run whose training data are on this disk."""
    from melp.data.prepared import load_prepared

    run = fetch(model).parent / "run.json"
    data = read_json(run).get("data") if run.is_file() else None
    paths = [part.get("path") for part in data if isinstance(part, dict)] if isinstance(data, list) else []
    here = [path for path in paths if isinstance(path, str) and (Path(path) / "dataset_dict.json").is_file()]
    splits = [load_prepared(path) for path in here]
    return leaks([split["train"] for split in splits if "train" in split], tested, model)
