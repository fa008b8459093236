"""The format of a prepared folder: its columns, and what they mean. Imports nothing heavy."""

from collections.abc import Mapping, Sequence

import xxhash  # 25 times as fast as a cryptographic hash, which would cost a tenth of preparation

STORED_RATE = 500  # Hz of every recording in a prepared folder

# Column -> type and meaning, as the card has them; label sets and the database's own columns follow these.
COLUMNS = {
    "record": ("string", "name of the recording in its database"),
    "patient": ("string", "identifier of the patient, who is in one split only"),
    "report": ("string", "free text, empty where there is none"),
    # (leads, samples) int16, little-endian, C order: 17,000 to 78,000 records/s at random access
    "signal": ("binary", "the samples: little-endian int16, (leads, samples), lead after lead"),
    "leads": ("list of strings", "names of the leads, in the order of the samples"),
    "sampling_rate": ("int32", "Hz"),
    "gain": ("list of float32", "units per millivolt, of each lead"),
    "baseline": ("list of float32", "the sample value of 0 mV, of each lead"),
    "signal_hash": ("string", "the same for recordings of equal samples, whatever their gain and name"),
    "quality": ("struct", "what is doubtful about the recording as its database holds it (`ecg_quality`)"),
}
REQUIRED_COLUMNS = tuple(name for name in COLUMNS if name not in ("signal_hash", "quality"))
QUALITY = {
    "nan_share": "float32",  # of the samples
    "flat_leads": "string",  # separated by spaces
    "clipped_share": "float32",
    "limb_error_mv": "float32",  # null without a third limb lead
    "suspected_gains": "bool",  # the limb leads disagree in mV only
    "peak_to_peak_mv": "float32",
    "implausible_amplitude": "bool",
    "suspected_swap": "string",  # "aVL/aVF", "arms", "chest" or ""
    "equal_leads": "string",  # "V2=V3", separated by spaces
}


def stored_features(label_sets: Mapping[str, Sequence[str]], extra: Mapping[str, str]):
    """Returns the `datasets.Features` of a prepared folder.

    Args:
        label_sets: `{label set: [class, ...]}`; stored as a list of class ids, null where a recording is not labelled.
        extra: `{column: Arrow type}` of the database's own columns.
    """
    from datasets import ClassLabel, Features, List, Value

    return Features(
        {
            "record": Value("string"),
            "patient": Value("string"),
            "report": Value("string"),
            "signal": Value("binary"),
            "leads": List(Value("string")),
            "sampling_rate": Value("int32"),
            "gain": List(Value("float32")),
            "baseline": List(Value("float32")),
            "signal_hash": Value("string"),
            "quality": {name: Value(dtype) for name, dtype in QUALITY.items()},
            **{name: List(ClassLabel(names=list(classes))) for name, classes in label_sets.items()},
            **{name: Value(dtype) for name, dtype in extra.items()},
        }
    )


def signal_hash(signal: bytes) -> str:
    """Returns the hash (XXH3, 128 bits) of a stored signal, by which copies of one tracing are known."""
    return xxhash.xxh3_128_hexdigest(signal)


def label_names(features) -> dict[str, list[str]]:
    """Returns `{label set: [class, ...]}` of a prepared folder's features."""
    from datasets import ClassLabel, List

    return {
        name: feature.feature.names
        for name, feature in features.items()
        if isinstance(feature, List) and isinstance(feature.feature, ClassLabel)
    }
