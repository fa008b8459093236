"""The card of a prepared folder: `dataset_card.md` filled with counts, prevalences and sources."""

import json
import re
import shlex
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from melp.data.stored import COLUMNS, STORED_RATE, label_names
from melp.markdown import Markdown, escape, table

HUB_LICENCES = {"apache-2.0", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "mit", "odbl", "odc-by"}
_SOURCE_LINES = {"Source": "url", "Licence": "licence", "Cite": "citation"}
# Word of the card -> which recordings, from the columns of `quality`.
_DOUBTS = {
    "a flat lead": lambda quality: pc.not_equal(quality("flat_leads"), ""),
    "missing samples": lambda quality: pc.greater(quality("nan_share"), 0),
    "clipped in 1% or more": lambda quality: pc.greater_equal(quality("clipped_share"), 0.01),
    "limb leads disagree by more than 0.2 mV": lambda quality: pc.greater(quality("limb_error_mv"), 0.2),
    "limb leads agree in digital units only": lambda quality: quality("suspected_gains"),
    "range above 10 or below 0.1 mV": lambda quality: quality("implausible_amplitude"),
    "leads look exchanged": lambda quality: pc.not_equal(quality("suspected_swap"), ""),
    "two equal chest leads": lambda quality: pc.not_equal(quality("equal_leads"), ""),
}


def dataset_card(module, name: str, description: dict, features, tables: dict[str, pa.Table]) -> str:
    """Returns the dataset card: counts, prevalence of every label, what was rejected and why, where it comes from.

    Args:
        module: of the database.
        name: of the folder.
        description: what `melp.json` holds.
        features: of the folder.
        tables: `light_columns` of each split.
    """
    from huggingface_hub import DatasetCard

    source, splits = module.SOURCE, list(description["records"])
    title = f"{source['name']} {source['version']}".strip()
    rules = [[rule, number] for rule, number in description["rejected_by_rule"].items()]
    labels = [
        (escape(label_set), _prevalence({split: table[label_set] for split, table in tables.items()}, classes))
        for label_set, classes in label_names(features).items()
    ]
    card = DatasetCard.from_template(
        card_data(source, title, splits),
        template_str=(files("melp.prepare") / "dataset_card.md").read_text(encoding="utf-8"),
        title=title,
        source=[(word, source[key]) for word, key in _SOURCE_LINES.items() if source[key]],
        splits=splits,
        folder=json.dumps(name, ensure_ascii=False),
        recordings=_recordings(tables),
        rejected=f"{description['rejected']:,}",
        rejected_by_rule=table(["rule", "recordings"], rules, numeric=False) if rules else "",
        doubtful=_doubtful(tables),
        copies=description["copies"],
        labels=labels,
        columns=_columns(features),
        command=_command(description),
        inputs=table(["input", "SHA-256"], list(description["inputs"].items()), numeric=False),
        documentation=module.__doc__.strip(),
    )
    return card.content.rstrip() + "\n"


def card_data(source: dict, title: str, splits: list[str]):
    """Returns what the Hub and `load_dataset` read, a `huggingface_hub.DatasetCardData`."""
    from huggingface_hub import DatasetCardData

    licence = re.sub(r"[^a-z0-9.]+", "-", source["licence"].lower()).strip("-")
    known = next((name for name in HUB_LICENCES if licence in (name, f"{name}-1.0")), None)
    licences = {"license": known} if known else {"license": "other", "license_name": licence or "not-stated"}
    data_files = [{"split": split, "path": f"{split}/data-*.arrow"} for split in splits]
    configs = [{"config_name": "default", "data_files": data_files}]
    return DatasetCardData(pretty_name=title, tags=["ecg", "medical"], configs=configs, **licences)


def light_columns(folder: Path) -> pa.Table:
    """Returns a split's rows without their samples, of which it keeps the number per lead (`samples`)."""
    parts = []
    for path in sorted(folder.glob("data-*.arrow")):
        with pa.memory_map(str(path)) as file:
            for batch in pa.ipc.open_stream(file):
                lengths = pc.divide(
                    pc.binary_length(batch["signal"]), pc.multiply(2, pc.list_value_length(batch["leads"]))
                )
                light = pa.Table.from_batches([batch.drop_columns(["signal", "leads", "gain", "baseline"])])
                parts.append(light.append_column("samples", lengths))
    # Copied, as the batches would keep the whole files mapped.
    return pa.concat_tables(parts).combine_chunks()


def count_reports(rows: pa.Table) -> int:
    return pc.sum(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(rows["report"])), 0)).as_py()


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})" if total else "0"


def _command(description: dict) -> str:
    options = [
        (f"--{name.replace('_', '-')}", *([] if value == "True" else [str(value)]))
        for name, value in description["options"].items()
    ]
    words = [description["database"], *(word for option in options for word in option)]
    return f"python -m melp.prepare {shlex.join(words)}"


def _recordings(tables: dict[str, pa.Table]) -> str:
    rows = []
    for split, columns in tables.items():
        hours = pc.sum(columns["samples"]).as_py() / STORED_RATE / 3600
        patients = pc.count_distinct(columns["patient"]).as_py()
        rows.append([split, len(columns), patients, f"{hours:,.2f}", count_reports(columns)])
    return table(["split", "recordings", "patients", "hours", "with a report"], rows, numeric=False)


def _doubtful(tables: dict[str, pa.Table]) -> str:
    """Returns how many recordings each part of the quality report points at."""
    rows = []
    for words, is_doubtful in _DOUBTS.items():
        row = [words]
        for columns in tables.values():
            count = pc.sum(is_doubtful(lambda name, q=columns["quality"]: pc.struct_field(q, name))).as_py()
            row.append(_share(count or 0, len(columns)))
        rows.append(row)
    return table([Markdown("by `quality`"), *tables], rows, numeric=False)


def _prevalence(columns: dict[str, pa.ChunkedArray], classes: list[str]) -> str:
    """Returns the recordings of each class, and their share of those that are labelled."""
    labelled = [len(column) - column.null_count for column in columns.values()]
    counts = [
        np.bincount(np.asarray(pc.list_flatten(column)), minlength=len(classes)).tolist()
        for column in columns.values()
    ]
    rows = [["(labelled)", *labelled]]
    for index, label in enumerate(classes):
        rows.append([label, *(_share(count[index], n) for count, n in zip(counts, labelled, strict=True))])
    return table(["label", *columns], rows, numeric=False)


def _columns(features) -> str:
    label_sets = label_names(features)
    rows = [[Markdown(f"`{name}`"), kind, meaning] for name, (kind, meaning) in COLUMNS.items()]
    for name, feature in features.items():
        if name in label_sets:
            rows.append([Markdown(f"`{name}`"), "list of class ids", "a label set; null: not labelled, empty: none"])
        elif name not in COLUMNS:
            rows.append([Markdown(f"`{name}`"), feature.dtype, "of the database"])
    return table(["column", "type", "meaning"], rows, numeric=False)
