"""Lists tracings that occur more than once, within prepared folders and across them.

    python -m melp.duplicates data/ptbxl
    python -m melp.duplicates data/georgia data/cpsc2018 --output duplicates.csv

Equal ones have the same samples; near-equal ones were shifted in time (by up to six of ten seconds), rescaled or
resampled. What is in two splits, or in the training data of one folder and the test of another, is a leak. FOLDER is a
folder that `python -m melp.prepare` wrote, or a dataset's ID or ID@REVISION.
"""

import argparse
import sys
from pathlib import Path

from melp.sources import check_prepared

SHOWN = 20


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="python -m melp.duplicates", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    parser.add_argument("--equal-only", action="store_true", help="by their hashes alone, which takes seconds")
    parser.add_argument("--output", metavar="FILE", help="write all pairs as a CSV table")
    options = parser.parse_args(arguments)
    if len(set(options.folders)) < len(options.folders):
        parser.error("a folder is named twice")
    try:
        for folder in options.folders:
            check_prepared(folder)
        from melp.duplicates.search import find_equal, find_near, load_recordings, write_duplicates

        recordings = load_recordings(options.folders)
        pairs = find_equal(recordings)
        pairs += [] if options.equal_only else find_near(recordings)
        if options.output:
            write_duplicates(pairs, Path(options.output))
    except (ValueError, OSError) as error:
        sys.exit(f"melp.duplicates: {error}")
    except KeyboardInterrupt:
        sys.exit("melp.duplicates: interrupted; nothing was written.")
    print_pairs(pairs, len(recordings), options)


def print_pairs(pairs: list, total: int, options):
    from melp.markdown import table

    print(f"{total:,} recordings:")
    kinds = ["equal"] + ["near"] * (not options.equal_only)
    rows = []
    for kind in kinds:
        these = [pair for pair in pairs if pair.kind == kind]
        rows.append([kind, *(sum(pair.across == across for pair in these) for across in ("", "splits", "folders"))])
    print(table(["pairs", "within a split", "across splits", "across folders"], rows))
    shown = sorted(pairs, key=lambda pair: ("folders", "splits", "").index(pair.across))[:SHOWN]
    for pair in shown:
        one, other = (f"{place.folder} {place.split} {place.record}" for place in (pair.one, pair.other))
        detail = "" if pair.kind == "equal" else f", shifted by {pair.shift:g} s, correlation {pair.correlation:.3f}"
        print(f"    {one} = {other} ({pair.kind}{detail})")
    if len(pairs) > len(shown):
        print(f"    and {len(pairs) - len(shown):,} more" + ("" if options.output else "; --output FILE lists them"))
    if options.output:
        print(f"Written: {options.output}")
    if any(pair.across for pair in pairs):
        print("Next: leave one recording of each pair out of the training data, or out of the test.")


if __name__ == "__main__":
    main()
