"""The index of a search: the embeddings of a predict output, in memory."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from melp.predict.options import Reading

SHOWN = ("record", "patient", "start", "path")


class Index:
    """The embeddings of an output, in memory: 1 GB per million of 256 numbers.

    Args:
        table: `embedding` (L2-normalised), `path`, `patient` and what else a hit is to have.
        reading: how its recordings were read.
    """

    def __init__(self, table: pa.Table, reading: Reading | None = None):
        self.reading = reading
        column = table["embedding"].combine_chunks()
        self.embeddings = np.asarray(column.flatten(), dtype=np.float32).reshape(len(table), -1)
        self.size = len(table)
        self.table = table.drop_columns(["embedding"])
        self._faiss = None

    def use_faiss(self):
        """Searches by faiss from now on, through the index of `datasets`: flat, so as exact as without.

        Raises:
            ImportError: where faiss is not installed.
        """
        try:
            import faiss
        except ImportError as error:
            raise ImportError('--faiss needs: pip install "melp[search]"') from error
        from datasets import Dataset

        self._faiss = Dataset(self.table.select(["path"]))
        self._faiss.add_faiss_index_from_external_arrays(
            self.embeddings, "embedding", metric_type=faiss.METRIC_INNER_PRODUCT
        )
        self.embeddings = None  # it has a copy

    def nearest(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns cosines and rows of the `count` nearest to a normalised query (dim,), nearest first."""
        count = min(count, self.size)
        if self._faiss is not None:
            matches = self._faiss.search("embedding", np.asarray(query, dtype=np.float32), k=count)
            return np.asarray(matches.scores), np.asarray(matches.indices)
        scores = self.embeddings @ query
        rows = np.argpartition(-scores, count - 1)[:count]
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        return scores[rows], rows

    def reading_of(self, hit: dict) -> Reading:
        """Returns how the ten seconds of a hit are read again: with what its file does not state, as it was told."""
        return replace(self.reading or Reading(), start=hit["start"] or 0.0, seconds=10.0, stride=None)

    def hits(self, query: np.ndarray, count: int) -> list[dict]:
        """Returns the nearest recordings, one per patient, as dicts with their `similarity`."""
        among = 4 * count
        while True:
            hits, seen = [], set()
            for score, row in zip(*self.nearest(query, among), strict=True):
                hit = self.table.slice(int(row), 1).to_pylist()[0]
                person = hit["patient"] or hit["path"]
                if person not in seen:
                    seen.add(person)
                    hits.append({"similarity": float(score), **hit})
                if len(hits) == count:
                    return hits
            if among >= self.size:
                return hits
            among *= 8


def index_files(folder: Path) -> list[Path]:
    """Returns the tables of an output of predict.py; raises ValueError where there is none."""
    files = sorted((Path(folder) / "data").glob("*.parquet"))
    if not files:
        raise ValueError(f"{folder} is no output of predict.py: it has no data/*.parquet.")
    return files


def open_index(folder: Path) -> Index:
    """Opens the output of a run of predict.py.

    Raises:
        ValueError: where there is none, or it has no embeddings.
    """
    import pyarrow.dataset as datasets

    data = datasets.dataset(index_files(folder))
    if "embedding" not in data.schema.names:
        raise ValueError(f"{folder} has no embeddings: run predict.py with --embeddings, into another --output.")
    if b"melp" not in (data.schema.metadata or {}):
        raise ValueError(f"{folder} does not say how its files were read: take its tables as predict.py wrote them.")
    return Index(data.to_table(["embedding", *SHOWN, "model", "commit"]), _reading_of(data.schema))


def _reading_of(schema: pa.Schema) -> Reading:
    """Returns the options of reading that an output was made with."""
    told = json.loads(schema.metadata[b"melp"])["processor"]
    told = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
    return Reading(**{field.name: told[field.name] for field in fields(Reading) if field.name in told})
