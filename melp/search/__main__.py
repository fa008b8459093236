"""Finds the recordings of a predict output that are nearest to a text or to another recording.

    python -m melp.search INDEX "inferior st elevation with av block"
    python -m melp.search INDEX query.dcm --top 20 --format csv
    python -m melp.search INDEX "atrial flutter" --pictures flutter.pdf      all on one sheet

INDEX is what `predict.py FOLDER --output INDEX --embeddings` wrote. Nearest is by the cosine of embeddings; of a
patient (of a recording, where no patient is known) only the nearest is shown. Research software, not a medical device.
"""

import argparse
import sys
from pathlib import Path

from melp.sources import check_model


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
        from melp.search.index import open_index

        if options.model is not None:
            check_model(options.model)
        index = open_index(options.index)
        if options.faiss:
            index.use_faiss()
        model, commit = (index.table[name][0].as_py() for name in ("model", "commit"))

        from melp.search.output import draw_hits, show  # torch and all that it takes
        from melp.search.query import check_query, embed_query, open_model

        check_query(options.query)
        try:
            predictor = open_model(options.model or model, commit)
        except ValueError as error:
            raise error if options.model else ValueError(f"{error} --model says where it is now.") from None
        hits = index.hits(embed_query(options.query, predictor), options.top)
        show(hits, options.format)
        if options.pictures is not None:
            draw_hits(hits, options.query, index, predictor.extractor, options.pictures)
            print(f"\nDrawn: {options.pictures}", file=sys.stderr)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"melp.search: {error}")


if __name__ == "__main__":
    main()
