"""The app: drop an ECG file, see the answer, search an archive. Research software, not a medical device.

    python app.py                            the model beside this file, at http://127.0.0.1:7860
    python app.py --model DIR_OR_ID --index INDEX
    python app.py --write-space DIR          the README.md and requirements.txt of a Hugging Face Space

INDEX is what `predict.py FOLDER --output INDEX --embeddings` wrote. It needs `pip install "melp[app]"`, no network.
Uploads are deleted after the answer; limits of size and time are options below. docs/app.md says how to put it on a
Space and behind a reverse proxy, and how other programs ask it.
"""

import argparse
import sys
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIMITS = {
    "file-mb": (100, "MB of one uploaded file"),
    "upload-mb": (500, "MB of all files that are uploaded at once"),
    "files": (500, "files that are uploaded at once, or are in a zip file"),
    "unpacked-mb": (1000, "MB that zip files may hold"),
    "seconds": (20, "seconds that reading one recording may take"),
    "batch-seconds": (1800, "seconds that a batch may take"),
    "memory-mb": (1500, "MB that reading may take"),
    "queue": (64, "requests that may wait"),
    "keep-minutes": (30, "minutes that a recording can be asked about after its last use"),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="app.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", metavar="DIR_OR_ID", help="folder, ID or ID@REVISION (default: beside this file)")
    parser.add_argument("--index", type=Path, metavar="INDEX", help="an output of predict.py --embeddings, to search")
    parser.add_argument("--host", help="address to listen at (default: 127.0.0.1; everybody's: 0.0.0.0)")
    parser.add_argument("--port", type=int, help="default: 7860, or the next that is free")
    parser.add_argument("--root-path", metavar="PATH", help="where a reverse proxy shows the app, as in /melp")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--write-space", type=Path, metavar="DIR", help="write README.md and requirements.txt, and end"
    )
    limits = parser.add_argument_group("limits of one request")
    for name, (default, text) in LIMITS.items():
        limits.add_argument(f"--{name}", type=type(default), default=default, metavar="N", help=f"{text} ({default})")
    return parser


def main(arguments: list[str] | None = None):
    options = build_parser().parse_args(arguments)
    if options.write_space is not None:
        from melp.app.space import write_space

        print(write_space(options.write_space))
        return
    if options.model is None:
        if not (HERE / "model.safetensors").is_file():
            sys.exit("app.py: there is no model beside this file: name one with --model.")
        options.model = str(HERE)
    try:
        from melp.app.engine import Settings  # torch and all that it takes, which --help can do without
        from melp.app.limits import Limits
        from melp.app.run import serving

        limits = Limits(**{name.replace("-", "_"): getattr(options, name.replace("-", "_")) for name in LIMITS})
        settings = Settings(options.model, options.index, options.device, limits)
        with serving(settings, options.host, options.port, options.root_path) as served:
            print(f"MELP answers at {served.url}  (Ctrl-C ends it)", flush=True)
            threading.Event().wait()
    except (ValueError, OSError, ImportError) as error:
        hint = ' Install it with: pip install "melp[app]"' if "gradio" in str(error) else ""
        sys.exit(f"app.py: {error}.{hint}" if hint else f"app.py: {error}")
    except KeyboardInterrupt:
        sys.exit("app.py: stopped.")


if __name__ == "__main__":
    main()
