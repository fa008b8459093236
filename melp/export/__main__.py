"""Writes a model's towers as ONNX, for runtimes without PyTorch, and compares them with PyTorch.

    python -m melp.export runs/demo/model --output runs/demo/model/onnx --recordings FILE...
    python -m melp.export ID@REVISION --output onnx --int8 --data data/ptbxl

The ECG tower's file takes `input_values` (batch, leads, samples) as the processor makes them and gives `ecg_embeds`
(L2-normalised) and `probe_embeds`; the text tower's takes `input_ids` and `attention_mask` (batch, tokens) and gives
`text_embeds`. The number of recordings, of texts and of their tokens is free. With --int8 each is written a second
time, with the weights of its matrix products in 8 bits.

What is printed: of each file its size, the largest difference of an embedding from PyTorch's, and the rank correlation
(Spearman) of the similarities between recordings, or texts. Name recordings of yours, by files or a prepared folder;
otherwise they are simulated. Needs `pip install 'melp[onnx]'`.
"""

import argparse
import shlex
import sys
from pathlib import Path

from melp.files import refuse_file
from melp.predict.paths import check_sources
from melp.sources import check_model, check_prepared, check_split


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m melp.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder, ID or ID@REVISION")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder to write; MODEL/onnx is pushed"
    )
    parser.add_argument("--int8", action="store_true", help="also with 8-bit weights")
    recordings = parser.add_mutually_exclusive_group()
    recordings.add_argument(
        "--recordings", nargs="+", metavar="FILE", help="to compare on: any file the processor reads"
    )
    recordings.add_argument("--data", metavar="DATA", help="to compare on: prepared folder, ID or ID@REVISION")
    parser.add_argument("--split", default="test", help="of DATA")
    parser.add_argument("--limit", type=int, default=64, help="recordings of DATA to compare on")
    options = parser.parse_args(arguments)
    if options.limit < 2:
        parser.error(f"--limit must be 2 or more, not {options.limit}")
    return options


def main(arguments: list[str] | None = None):
    options = read_options(arguments)
    try:
        check_model(options.model)
        if options.data is not None:
            check_prepared(options.data)
            check_split([options.data], options.split)
        check_sources(options.recordings or ())
        refuse_file(options.output)
        from melp.export.onnx import export

        for line in export(**vars(options)):
            print(line, flush=True)
    except (ValueError, OSError) as error:
        sys.exit(f"melp.export: {error}")
    if options.output.name == "onnx" and (options.output.parent / "config.json").exists():
        print(f"Next: python -m melp.hub push {shlex.quote(str(options.output.parent))} ID")
    else:
        print("Next: python -m melp.benchmark encode --onnx")


if __name__ == "__main__":
    main()
