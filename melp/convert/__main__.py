"""Turns published weights into a model folder of this repository, and back.

    python -m melp.convert SOURCE --output DIR [--text-model BERT]
    python -m melp.convert DIR --to original --output ORIGINAL

SOURCE is a folder, a file, or ID[@REVISION] or ID/FILE[@REVISION] of the Hub, recognised by its content:

- the published ECG encoder (`config.json` and `model.safetensors`, sharded or not), giving a MelpEcgModel;
- the original's whole model or its ECG encoder in the original's key names (`config.json` and `weights.safetensors`),
  or a Lightning checkpoint (.ckpt) of the whole model;
- an ECG-FM / fairseq-signals checkpoint (.pt) to start the ECG tower from: the poolers are drawn afresh;
- a BERT to start the text tower from: its vocabulary is extended by [BOS], everything else is drawn afresh. Beside an
  ECG encoder, --text-model takes it.

Every key is mapped or dropped by name, and one that no rule knows is an error; so is a parameter of ours that nothing
fills. Checkpoints are read with torch's `weights_only=True`: nothing in them is executed. What was written is loaded
again and compared. The dtype is kept.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from melp.sources import parse_source


def heads_option(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if name not in ("ecg", "pooler", "text", "decoder") or not number.isdecimal() or int(number) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not ecg=N, pooler=N, text=N or decoder=N")
    return name, int(number)


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m melp.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="folder, file, ID[@REVISION] or ID/FILE[@REVISION]")
    parser.add_argument("--output", required=True, type=Path, help="folder to write; nothing is overwritten")
    parser.add_argument("--to", choices=["melp", "original"], default="melp", help="whose names to write")
    parser.add_argument("--text-model", metavar="BERT", help="for the text tower beside an ECG encoder")
    parser.add_argument("--tokenizer", metavar="BERT", help="of the vocabulary (default: the source's own)")
    parser.add_argument(
        "--attention-heads",
        nargs="+",
        type=heads_option,
        default=[],
        metavar="TOWER=N",
        help="where no config tells them",
    )
    options = parser.parse_args(arguments)
    if options.to == "original" and (options.text_model or options.tokenizer or options.attention_heads):
        parser.error("--to original needs nothing but a model folder: no --text-model, --tokenizer, --attention-heads")
    return options


def main(arguments: list[str] | None = None):
    options = read_options(arguments)
    try:
        for source in filter(None, (options.source, options.text_model, options.tokenizer)):
            parse_source(source)  # before torch, which takes longer
        if options.output.exists() and not (options.output.is_dir() and not any(options.output.iterdir())):
            raise ValueError(f"{options.output} exists; give another --output.")
        run(options)
    except (ValueError, OSError) as error:
        sys.exit(f"melp.convert: {error}")


def run(options: argparse.Namespace):
    from melp.convert.model import convert, to_original, write_model, write_original

    if options.to == "original":
        tensors, config, table = to_original(options.source)
    else:
        heads = dict(options.attention_heads)
        conversion = convert(options.source, options.text_model, options.tokenizer, heads)
        table = conversion.table
    print(*table, "", sep="\n")
    for note, number in Counter(line.note for line in table if line.target == "-").items():
        print(f"Not used: {number} tensor(s), {note.removeprefix('dropped: ')}.")
    if options.to == "original":
        write_original(tensors, config, options.output)
    else:
        write_model(conversion, options.output)


if __name__ == "__main__":
    main()
