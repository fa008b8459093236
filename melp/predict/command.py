"""The command line of predictions: predict.py of a clone, `python -m melp.predict` wherever MELP is installed."""

import argparse
import sys
from pathlib import Path

from melp.predict.options import Options, Reading, check_files, default_model

USAGE = """Reads ECG files of any format and says what a model finds in them. Research software, not a medical device.

    python predict.py FILE_OR_FOLDER...                           a table per recording, for a few
    python predict.py FOLDER --output DIR --embeddings            Parquet, for any number; then python -m melp.search
    python predict.py FOLDER --findings "atrial fibrillation,left bundle branch block" --format csv > findings.csv
    accelerate launch predict.py FOLDER --output DIR              on all GPUs, or machines, each file read once

Formats are recognised by content: WFDB, DICOM, HL7 aECG, MUSE, Philips, SCP-ECG, ISHNE, MFER, Mortara, CardioSoft,
Schiller, EDF and BDF, tables and arrays (docs/formats.md). Interrupted or killed, the same command continues, and adds
files that came since. DIR/rejected.csv says of each file that could not be read why.
"""


def build_parser(name: str = "predict.py") -> argparse.ArgumentParser:
    """Returns the parser of the command that `python NAME` runs."""
    parser = argparse.ArgumentParser(
        prog=name if name.endswith(".py") else f"python {name}",
        description=USAGE.replace("predict.py", name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("sources", nargs="+", metavar="FILE_OR_FOLDER", help="ECG files, FILE#RECORD of a stack, folders of files")
    add("--model", metavar="DIR_OR_ID", help="folder, ID or ID@REVISION (default: that of this repository)")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--findings", metavar="LIST", help='any findings in words: "atrial fibrillation,long QT"')
    asked.add_argument(
        "--label-set", metavar="NAME", help="of melp/evaluation/prompts.yaml (default: what is calibrated)"
    )
    add("--output", type=Path, metavar="DIR", help="write there, and continue there")
    add("--format", choices=("table", "csv", "jsonl", "parquet"), help="default table; with --output parquet")
    add("--pictures", nargs="?", const="png", choices=("png", "svg", "pdf"), help="draw every recording (png)")
    add("--draft", action="store_true", help="draft a report, which can be wrong in every sentence")
    add("--embeddings", action="store_true", help="keep embeddings, which melp.search needs")
    add("--keep-identifiers", action="store_true", help="let names and other identifying fields into the output")
    add("--lead-subset", nargs="+", metavar="LEAD", help="use these leads only, as in --lead-subset I II V2")
    add("--stride", type=float, metavar="S", help="cut recordings into windows that start every S seconds")
    add("--start", type=float, default=0.0, metavar="S", help="leave out what is before (0)")
    add("--seconds", type=float, metavar="S", help="read no more than this, of a long file only that part")
    add("--layout", metavar="3x4", help="recordings are prints, each lead there for 2.5 s; with rhythm strip: 3x4+II")
    add("--interpolate", action="store_true", help="fill gaps of up to 0.1 s instead of rejecting")
    add("--accept-mismatch", action="store_true", help="read files that contradict their checksums, too")
    add("--sampling-rate", type=float, metavar="HZ", help="of tables and arrays that do not state it")
    add("--leads", nargs="+", metavar="LEAD", help="of tables and arrays that do not name them, in their order")
    add("--unit", help="of voltage, of files that do not state it: mV, uV, '2.5 uV'")
    add("--batch-size", type=int, default=16, help="windows encoded together (16)")
    add("--num-workers", type=int, help="processes that read (default: 1, on a GPU up to 8)")
    return parser


def main(arguments: list[str] | None = None, name: str = "predict.py"):
    """Runs a command line, by default that of the process, of the command that `python NAME` runs.

    Raises:
        SystemExit: with what is wrong; paths, options and output are looked at before torch is imported.
    """
    values = vars(build_parser(name).parse_args(arguments))
    try:
        reading = Reading(
            verify=not values.pop("accept_mismatch"),
            **{name: _tuple(values.pop(name)) for name in ("leads", "lead_subset")},
            **{name: values.pop(name) for name in ("sampling_rate", "unit", "start", "seconds", "stride", "layout")},
            interpolate=values.pop("interpolate"),
        )
        values["model"] = values["model"] or default_model()
        options = Options(reading=reading, **values)
        check_files(options)

        from melp.predict.run import run  # torch and all that it takes

        run(options)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"{name.removeprefix('-m ')}: {error}")
    except KeyboardInterrupt:
        again = "; the same command continues from here" if values["output"] else ""
        sys.exit(f"{name.removeprefix('-m ')}: interrupted{again}.")


def _tuple(values: list[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)
