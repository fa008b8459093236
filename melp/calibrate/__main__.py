"""Calibrates a model on labelled recordings: probabilities, thresholds, and present / absent / cannot say.

    python -m melp.calibrate MODEL --data DATA               # writes MODEL/findings.json
    python -m melp.calibrate MODEL --data DATA --passport    # also for fewer leads, shorter recordings and prints
    python -m melp.calibrate MODEL --data LOCAL --adapt      # again, on 50 to 500 labels of yours

DATA is a folder that `python -m melp.prepare` wrote, or a dataset's ID; the recordings must be new to the model. See
docs/calibration.md for what the words promise, and for whom.
"""

import argparse
import shlex
import sys
from pathlib import Path

from melp.sources import check_model, check_prepared, check_split, parse_source
from melp.yaml_file import read_yaml


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m melp.calibrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", help="folder, ID or ID@REVISION of a whole model")
    add("--data", required=True, metavar="DATA", help="prepared folder, ID or ID@REVISION")
    add("--split", default="validation", help="whose recordings to take, or all (validation)")
    add("--label-set", nargs="+", metavar="NAME", help="label sets to calibrate on (all of the folder)")
    add("--coverage", type=float, metavar="X", help="of the verdicts, with and without a finding (0.9)")
    add("--prompts", metavar="FILE", help="YAML or JSON of label set, label and prompts (our own)")
    add("--passport", action="store_true", help="also measure and calibrate with fewer leads, less time, and prints")
    add("--adapt", action="store_true", help="tune the model's findings.json again on local labels; see before, after")
    add("--labels", type=int, metavar="N", help="--adapt: take N labels, drawn by patients, and measure on the others")
    add("--output", type=Path, metavar="FILE", help="where to write (MODEL/findings.json)")
    add("--seed", type=int, default=0, help="of --labels and the bootstrap (0)")
    add("--batch-size", type=int, default=64, help="recordings encoded at once (64)")
    add("--num-workers", type=int, default=0, help="reading processes (0)")
    options = parser.parse_args(arguments)
    if options.adapt and any((options.coverage, options.label_set, options.prompts)):
        parser.error("--adapt keeps coverage, labels and prompts of findings.json: calibrate anew to change them")
    options.coverage = 0.9 if options.coverage is None else options.coverage
    if not 0.5 <= options.coverage <= 0.99:
        parser.error(f"--coverage must be from 0.5 to 0.99, not {options.coverage:g}")
    if options.labels is not None and (not options.adapt or options.labels < 10):
        parser.error("--labels takes 10 or more, and belongs to --adapt")
    for name, least in (("batch_size", 1), ("num_workers", 0), ("seed", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be {least} or more, not {getattr(options, name)}")
    if options.passport and options.adapt:
        parser.error("--passport takes more labels than --adapt: calibrate with it first")
    return options


def main(arguments: list[str] | None = None):
    options = read_options(arguments)
    try:
        check_model(options.model)
        check_prepared(options.data)
        check_split([options.data], options.split)
        if options.output is None and parse_source(options.model).path is None:
            raise ValueError(f"{options.model} is on the Hub: name a file to write with --output.")
        if options.prompts is not None:
            read_yaml(options.prompts, aliases=True)  # what it has to hold is known after torch was imported
        from accelerate import PartialState

        from melp.calibrate.fit import Calibration, Options, describe, write
        from melp.evaluation.models import Runtime

        values = vars(options)
        runtime = Runtime(PartialState().device, 0, 1, values.pop("batch_size"), values.pop("num_workers"), None)
        calibration = Calibration(Options(**values), runtime)
        for warning in calibration.warnings():
            print(warning)
        if options.adapt:
            content, lines = calibration.adapt()
            print("\n" + "\n".join(lines))
        else:
            content = calibration.fit()
            print("\n" + describe(content))
        if not content["findings"]:
            raise ValueError(f"too few recordings to calibrate any finding: {calibration.file} stays as it is.")
        write(content, calibration.file)
    except (ValueError, OSError) as error:
        sys.exit(f"melp.calibrate: {error}")
    print(f"Written: {calibration.file}, {len(content['findings'])} findings")
    if options.output is None:  # the model's own file, which evaluate.py reads
        model = shlex.quote(options.model)
        print(
            f"Next, on recordings that it does not rest on: python evaluate.py calibration --model {model} --data DATA"
        )


if __name__ == "__main__":
    main()
