"""Shows where a recording bears out each sentence of a draft or report, or a finding: stretches of time, beats, leads.

    python -m melp.explain ECG                                        the sentences of the model's draft
    python -m melp.explain ECG --findings "atrial fibrillation,long QT"
    python -m melp.explain ECG --report "Sinus rhythm. Inferior infarct." --output DIR
    python -m melp.explain ECG --beats --output DIR                   where the model's beat queries look

Of every text it says what removing the shown part does to its score, and removing as much elsewhere; where that makes
no difference, it says that the evidence is not faithful. --output takes the sheets (25 mm/s, 10 mm/mV, 3x4 with a
rhythm strip and 12x1; PNG, SVG and PDF) and JSON. Research software, not a medical device.
"""

import argparse
import sys
from pathlib import Path

from melp.evaluation.settings import ATTRIBUTIONS
from melp.explain.options import Options, check_files
from melp.predict.options import Reading, default_model


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m melp.explain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "sources",
        nargs="+",
        metavar="FILE",
        help="ECG files of any format, FILE#RECORD of a stack, FOLDER#RECORD of a prepared folder",
    )
    add("--model", metavar="DIR_OR_ID", help="folder, ID or ID@REVISION (default: that of this repository)")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--findings", metavar="LIST", help='findings in words: "atrial fibrillation,long QT"')
    asked.add_argument("--report", metavar="TEXT", help="a report, whose sentences are explained")
    asked.add_argument("--beats", action="store_true", help="where each beat query looks, whatever the text")
    add("--method", choices=ATTRIBUTIONS, help="attribution (default: the best of `evaluate.py faithfulness`)")
    add("--output", type=Path, metavar="DIR", help="write sheets and JSON there")
    add("--start", type=float, default=0.0, metavar="S", help="leave out what is before (0); 10 s from there count")
    add("--sampling-rate", type=float, metavar="HZ", help="of tables and arrays that do not state it")
    add("--leads", nargs="+", metavar="LEAD", help="of tables and arrays that do not name them, in their order")
    add("--unit", help="of voltage, of files that do not state it: mV, uV, '2.5 uV'")
    add(
        "--layout",
        metavar="3x4",
        help="the recording is a print, each lead there for 2.5 s; with rhythm strip: 3x4+II",
    )
    return parser


def main(arguments: list[str] | None = None):
    values = vars(build_parser().parse_args(arguments))
    try:
        leads = values.pop("leads")
        reading = Reading(
            leads=None if leads is None else tuple(leads),
            **{name: values.pop(name) for name in ("sampling_rate", "unit", "start", "layout")},
        )
        values["model"] = values["model"] or default_model()
        options = Options(reading=reading, **values)
        check_files(options)

        from melp.explain.run import run  # torch and all that it takes

        run(options)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"melp.explain: {error}")
    except KeyboardInterrupt:
        sys.exit("melp.explain: interrupted.")


if __name__ == "__main__":
    main()
