"""Command-line options that several tasks share."""

import os
from pathlib import Path

from melp.evaluation.metrics import MIN_POSITIVES, SAMPLES


def add_common(parser, data: bool = True):
    """What every task takes; `data=False` for one that names its folders otherwise."""
    parser.add_argument("--model", required=True, help="model folder or Hub id")
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="OTHER", help="other models, compared by a paired bootstrap"
    )
    if data:
        parser.add_argument(
            "--data", required=True, nargs="+", metavar="DIR", help="prepared folder; several are measured as one"
        )
    parser.add_argument("--output", help="folder for results.json, results.md, predictions.parquet and figures/")
    parser.add_argument("--split", default="test", help="split to measure on (test); all")
    parser.add_argument("--batch-size", type=int, default=64, help="recordings encoded at once, a process (64)")
    parser.add_argument("--num-workers", type=int, help="reading processes (default: on a GPU up to 8, else none)")
    parser.add_argument(
        "--cache", default=default_cache(), help=f"folder of kept features ({default_cache()}); 'none'"
    )
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"bootstrap samples of the intervals ({SAMPLES})")
    parser.add_argument("--seed", type=int, default=0, help="of bootstrap, untrained twin and whatever is drawn (0)")


def add_labels(parser):
    """What tasks that score classes take."""
    parser.add_argument(
        "--label-set",
        "--label-sets",
        nargs="+",
        metavar="NAME",
        help="which labels, one name a folder of --data (default: the first that fits)",
    )
    parser.add_argument(
        "--min-positives", type=int, default=MIN_POSITIVES, help=f"mark classes with fewer ({MIN_POSITIVES})"
    )


def add_cpsc_original(parser):
    parser.add_argument(
        "--cpsc-original",
        action="store_true",
        help="read recordings as the original reads CPSC2018: the first 5 s, zero-padded to 10 s, then scaled",
    )


def default_cache() -> str:
    return str(Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "melp")
