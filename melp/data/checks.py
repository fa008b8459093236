"""Checks whether a folder that something else wrote is in the format that `melp.data.stored` describes."""

import pyarrow as pa
import pyarrow.compute as pc

from melp.data.stored import REQUIRED_COLUMNS, STORED_RATE, label_names
from signal_melp import LEADS


def _is_list(is_value):
    return lambda kind: pa.types.is_list(kind) and is_value(kind.value_type)


_IS_TYPE = {
    **dict.fromkeys(("record", "patient", "report"), pa.types.is_string),
    "signal": lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind),
    "leads": _is_list(pa.types.is_string),
    "sampling_rate": pa.types.is_integer,
    **dict.fromkeys(("gain", "baseline"), _is_list(pa.types.is_floating)),
}


def check_columns(split, where: str):
    """Raises ValueError, beginning with `where`, for a column that is missing or of another type."""
    missing = [column for column in REQUIRED_COLUMNS if column not in split.column_names]
    if missing:
        raise ValueError(f"{where} has no column {', '.join(missing)}: make one with `python -m melp.prepare`.")
    schema = split.features.arrow_schema
    for name, is_type in _IS_TYPE.items():
        if not is_type(schema.field(name).type):
            raise ValueError(f"{where}: column {name} is of type {schema.field(name).type}: see docs/data.md.")


def check_rows(split, where: str):
    """Raises ValueError, beginning with `where` and naming the first record whose cells cannot be right."""
    table = split.with_format("arrow").select_columns([*REQUIRED_COLUMNS, *label_names(split.features)])[:]
    for column in REQUIRED_COLUMNS:
        if column != "report":
            _refuse(table, pc.is_null(table[column]), f"has no {column}", where)
    _refuse(table, pc.not_equal(table["sampling_rate"], STORED_RATE), f"is not at {STORED_RATE} Hz", where)
    patterns = pc.binary_join(table["leads"], " ")
    wrong = [text for text in pc.unique(patterns).to_pylist() if not _are_leads(text)]
    _refuse(table, pc.is_in(patterns, pa.array(wrong, pa.string())), "has no, repeated or unknown leads", where)
    counts = pc.list_value_length(table["leads"])
    for column in ("gain", "baseline"):
        uneven = pc.not_equal(pc.list_value_length(table[column]), counts)
        _refuse(table, uneven, f"has not one {column} per lead", where)
        values = pc.list_flatten(table[column])
        strange = pc.invert(pc.is_finite(values))
        if column == "gain":
            strange = pc.or_(strange, pc.equal(values, 0))
        _refuse(table, _any_of_row(table, column, strange), f"has a {column} that cannot be", where)
    size, frame = pc.cast(pc.binary_length(table["signal"]), pa.int64()), pc.multiply(pc.cast(counts, pa.int64()), 2)
    ragged = pc.not_equal(pc.multiply(pc.divide(size, frame), frame), size)
    _refuse(table, pc.or_(pc.equal(size, 0), ragged), "has no samples, or not as many of every lead", where)
    for name, classes in label_names(split.features).items():
        ids = pc.list_flatten(table[name])
        outside = pc.or_(pc.less(ids, 0), pc.greater_equal(ids, len(classes)))
        _refuse(table, _any_of_row(table, name, outside), f"has a class in {name!r} that the set does not have", where)


def _any_of_row(table: pa.Table, column: str, flags) -> pa.Array:
    """Returns, for each row, whether any of its list's flattened `flags` is set."""
    rows = pc.unique(pc.list_parent_indices(table[column]).filter(pc.fill_null(flags, False)))
    return pc.is_in(pa.array(range(len(table)), rows.type), rows)


def _are_leads(text: str | None) -> bool:
    leads = (text or "").split(" ")
    return len(leads) == len(set(leads)) and set(leads) <= set(LEADS)


def _refuse(table: pa.Table, wrong, reason: str, where: str):
    records = table["record"].filter(pc.fill_null(wrong, False))
    if len(records):
        more = f" ({len(records):,} such records)" if len(records) > 1 else ""
        raise ValueError(f"{where}: record {records[0].as_py()!r} {reason}{more}: correct it, or leave it out.")
