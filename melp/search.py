"""Finds the recordings of a predict output that are nearest to a text or to another recording.

    python -m melp.search INDEX "inferior st elevation with av block"
    python -m melp.search INDEX query.dcm --top 20 --format csv
    python -m melp.search INDEX "atrial flutter" --pictures flutter.pdf      all on one sheet

INDEX is what `predict.py FOLDER --output INDEX --embeddings` wrote. Nearest is by the cosine of embeddings; of a
patient (of a recording, where no patient is known) only the nearest is shown. Research software, not a medical device.
"""

import argparse
import csv
import json
import os
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from melp.notice import NOTICE

if TYPE_CHECKING:
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

    def __init__(self, table: "pa.Table", reading: "Reading | None" = None):
        import numpy as np

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

    def nearest(self, query: "np.ndarray", count: int) -> tuple["np.ndarray", "np.ndarray"]:
        """Returns cosines and rows of the `count` nearest to a normalised query (dim,), nearest first."""
        import numpy as np

        count = min(count, self.size)
        if self._faiss is not None:
            matches = self._faiss.search("embedding", np.asarray(query, dtype=np.float32), k=count)
            return np.asarray(matches.scores), np.asarray(matches.indices)
        scores = self.embeddings @ query
        rows = np.argpartition(-scores, count - 1)[:count]
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        return scores[rows], rows

    def reading_of(self, hit: dict) -> "Reading":
        """Returns how the ten seconds of a hit are read again: with what its file does not state, as it was told."""
        from melp.predict.options import Reading

        return replace(self.reading or Reading(), start=hit["start"] or 0.0, seconds=10.0, stride=None)

    def hits(self, query: "np.ndarray", count: int) -> list[dict]:
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


def _reading_of(schema: "pa.Schema") -> "Reading":
    """Returns the options of reading that an output was made with."""
    from melp.predict.options import Reading

    told = json.loads(schema.metadata[b"melp"])["processor"]
    told = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
    return Reading(**{field.name: told[field.name] for field in fields(Reading) if field.name in told})


def embed_query(query: str, model: str, commit: str) -> "np.ndarray":
    """Returns the embedding of a text, or of the recording that `query` names.

    Raises:
        ValueError: where the model is not that of the index, has no text tower for a text, or the file is unreadable
            or not there.
    """
    import pyarrow as pa
    import torch

    from findings_melp import embed_prompts
    from melp.predict.paths import list_recordings
    from melp.predict.predictor import Predictor
    from melp.predict.reading import Reading, Recordings
    from modeling_melp import MelpModel
    from sentence_melp import FILE_NAME

    is_recording = _is_recording(query)
    if not is_recording and FILE_NAME.fullmatch(query):
        raise ValueError(f"{query} looks like a recording, but there is no such file; as a text, put it in a sentence")
    predictor = Predictor(model, torch.device("cpu"), embeddings=True)
    if predictor.commit != commit:
        raise ValueError(f"{model} is not the model that the index was made with ({predictor.commit}, not {commit}).")
    if not is_recording:
        if not isinstance(predictor.model, MelpModel):
            raise ValueError(f"{model} has no text tower: search by a file, or make the index with a whole model.")
        return embed_prompts(predictor.model, predictor.processor, [[query]])[0].numpy()
    paths = list_recordings([query])
    if len(paths) > 1:
        raise ValueError(f"{query} holds {len(paths):,} recordings: name one of them.")
    item = Recordings(pa.chunked_array([paths.combine_chunks()]), predictor.extractor, Reading(), False)[0]
    if item.error:
        raise ValueError(f"{query}: {item.error}")
    ((_, (row,)),) = predictor.predict([item])
    return row["embedding"]


def _is_recording(query: str) -> bool:
    return any(os.path.exists(path) for path in (query, f"{query}.hea", query.rpartition("#")[0] or query))


def draw_hits(hits: list[dict], query: str, file: Path):
    """Draws the hits below each other: leads II, V1 and V5 of the ten seconds that were found."""
    import numpy as np

    from formats_melp import read_ecg
    from melp.drawing import draw_strips
    from melp.files import write_atomically

    strips = []
    for number, hit in enumerate(hits, 1):
        title = f"{number}.  {hit['similarity']:.3f}  {hit['record']}"
        try:
            block = read_ecg(hit["path"], start=hit["start"], seconds=10.0)
            strip = {"signal": block.signal[0], "leads": block.leads, "sampling_rate": block.sampling_rate}
        except ValueError as error:
            strip = {"signal": np.zeros((0, 0)), "leads": [], "sampling_rate": 500.0}
            title += f"  ({error})"
        strips.append({**strip, "title": title})
    sheet = draw_strips(strips, title=f"Nearest to: {query}")
    write_atomically(file, lambda path: sheet.savefig(path, format=file.suffix[1:]))


def show(hits: list[dict], form: str, file=None):
    """Prints hits as a table, or as CSV after a comment line."""
    file, columns = file or sys.stdout, ("similarity", *SHOWN)
    if form == "csv":
        file.write(f"# {NOTICE}\n")
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(hits)
        return
    print(f"{NOTICE}\n", file=file)
    width = max([len("record"), *(len(hit["record"]) for hit in hits)])
    print(f"{'':>4} similarity  {'record':{width}}  from s  path", file=file)
    for number, hit in enumerate(hits, 1):
        print(
            f"{number:4} {hit['similarity']:10.3f}  {hit['record']:{width}}  {hit['start']:6g}  {hit['path']}",
            file=file,
        )


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="python -m melp.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("index", type=Path, metavar="INDEX", help="an output of predict.py with --embeddings")
    parser.add_argument("query", metavar="TEXT_OR_FILE")
    parser.add_argument("--model", metavar="DIR_OR_ID", help="where the index's model is now (default: where it was)")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="recordings, one per patient (10)")
    parser.add_argument("--format", choices=("table", "csv"), default="table")
    parser.add_argument("--pictures", type=Path, metavar="FILE", help="draw them on one sheet: .png, .svg or .pdf")
    parser.add_argument("--faiss", action="store_true", help="by faiss, which finds the same: slower on few CPU cores")
    options = parser.parse_args(arguments)
    if options.top < 1:
        parser.error(f"--top must be at least 1, not {options.top}")
    if options.pictures is not None and options.pictures.suffix not in (".png", ".svg", ".pdf"):
        parser.error(f"--pictures {options.pictures} must end with .png, .svg or .pdf")
    try:
        index = open_index(options.index)
        if options.faiss:
            index.use_faiss()
        model, commit = (index.table[name][0].as_py() for name in ("model", "commit"))
        hits = index.hits(embed_query(options.query, options.model or model, commit), options.top)
        show(hits, options.format)
        if options.pictures is not None:
            draw_hits(hits, options.query, options.pictures)
            print(f"\nDrawn: {options.pictures}", file=sys.stderr)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"melp.search: {error}")


if __name__ == "__main__":
    main()
