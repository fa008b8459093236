"""The command line of the app."""

import argparse
import signal
import sys
import threading
from pathlib import Path

USAGE = """The app: drop an ECG file, see the answer, search an archive. Research software, not a medical device.

    python app.py                            the model beside this file, at http://127.0.0.1:7860
    python app.py --model DIR_OR_ID --index INDEX
    python app.py --write-space DIR          the README.md and requirements.txt of a Hugging Face Space

INDEX is what `predict.py FOLDER --output INDEX --embeddings` wrote. It needs `pip install "melp[app]"`, no network.
Uploads are deleted after the answer; limits of size and time are options below. docs/app.md says how to put it on a
Space and behind a reverse proxy, and how other programs ask it.
"""
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


def build_parser(name: str = "app.py") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=name if name.endswith(".py") else f"python {name}",
        description=USAGE.replace("app.py", name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model", metavar="DIR_OR_ID", help="folder, ID or ID@REVISION (default: that of this repository)"
    )
    parser.add_argument("--index", type=Path, metavar="INDEX", help="an output of predict.py --embeddings, to search")
    parser.add_argument("--host", help="address to listen at (default: 127.0.0.1; everybody's: 0.0.0.0)")
    parser.add_argument("--port", type=int, help="default: 7860, or the next that is free")
    parser.add_argument("--root-path", metavar="PATH", help="where a reverse proxy shows the app, as in /melp")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--write-space", type=Path, metavar="DIR", help="write README.md and requirements.txt, and end"
    )
    limits = parser.add_argument_group("limits of one request")
    for limit, (default, text) in LIMITS.items():
        limits.add_argument(f"--{limit}", type=type(default), default=default, metavar="N", help=f"{text} ({default})")
    return parser


def main(arguments: list[str] | None = None, name: str = "app.py"):
    """Runs the app until it is stopped.

    Args:
        name: of the command, as its help has it.
    """
    options, said = build_parser(name).parse_args(arguments), name.removeprefix("-m ")
    try:
        if options.write_space is not None:
            from melp.app.space import write_space

            print(write_space(options.write_space))
            return
        from melp.app.limits import Limits
        from melp.predict.options import default_model
        from melp.search.index import index_files
        from melp.sources import check_model

        limits = Limits(**{name.replace("-", "_"): getattr(options, name.replace("-", "_")) for name in LIMITS})
        if options.port is not None and not 0 <= options.port <= 65535:
            raise ValueError(f"--port must be from 0 to 65535, not {options.port}.")
        options.model = options.model or default_model()
        if options.model is None:
            raise ValueError("there is no model in this repository: name one with --model.")
        check_model(options.model)
        if options.index is not None:
            index_files(options.index)
        from melp.app.engine import Settings  # torch and all that it takes, which a mistake need not wait for
        from melp.app.run import serving

        settings = Settings(options.model, options.index, options.device, limits)
        # As Ctrl-C: `docker stop` and systemd ask by it, and the uploads are deleted.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        with serving(settings, options.host, options.port, options.root_path) as served:
            print(f"MELP answers at {served.url}  (Ctrl-C ends it)", flush=True)
            threading.Event().wait()
    except (ValueError, OSError, ImportError) as error:
        hint = '. Install it with: pip install "melp[app]"' if "gradio" in str(error) else ""
        sys.exit(f"{said}: {error}{hint}")
    except KeyboardInterrupt:
        sys.exit(f"{said}: stopped.")
