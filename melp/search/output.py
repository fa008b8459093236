"""Hits of a search, as a table, CSV or a sheet of their traces."""

import csv
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from melp.files import write_atomically
from melp.notice import NOTICE
from melp.search.index import SHOWN, Index
from processing_melp import MelpFeatureExtractor


def draw_hits(hits: list[dict], query: str, index: Index, extractor: MelpFeatureExtractor, file: Path):
    """Draws the hits below each other: leads II, V1 and V5 of their ten seconds, read as for the index."""
    from melp.drawing import draw_strips
    from melp.predict.reading import Recordings

    strips = []
    for number, hit in enumerate(hits, 1):
        title = f"{number}.  {hit['similarity']:.3f}  {hit['record']}"
        item = Recordings(pa.chunked_array([[hit["path"]]]), extractor, index.reading_of(hit), keep_block=True)[0]
        if item.error is None:
            strip = {
                "signal": item.block.signal[0],
                "leads": item.block.leads,
                "sampling_rate": item.block.sampling_rate,
            }
        else:
            strip = {"signal": np.zeros((0, 0)), "leads": [], "sampling_rate": 500.0}
            title += f"  ({item.error})"
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
