"""Uploaded files: where they lie, for how long, and how those of one recording come together."""

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from melp.app.limits import MB, Limits, Refusal


class Uploads:
    """A private folder; every request takes its files out of it, and they are gone after the answer.

    Attributes:
        root: Gradio's folder for uploads (below it a folder of an unguessable name each) and downloads.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self.root = Path(tempfile.mkdtemp(prefix="melp-app-"))  # for nobody else: 0700
        self._requests = Path(tempfile.mkdtemp(prefix="melp-app-"))
        self._stopped = threading.Event()

    def start(self):
        """Sweeps from now on what nobody came for: uploads without a request, downloads after their time."""
        threading.Thread(target=self._sweep, daemon=True).start()

    def close(self):
        self._stopped.set()
        for folder in (self.root, self._requests):
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def take(self, payload) -> Iterator[Path]:
        """Yields a folder with the files of a request under their own names, which ends with the request.

        Files of one name are put apart; the others lie together, a WFDB header beside its samples.

        Args:
            payload: Gradio's description of uploaded files, `{"path": ...}` or a list of these.

        Raises:
            Refusal: where there are none, too many or too large ones, or one was not uploaded.
        """
        files = payload if isinstance(payload, list) else [payload] if payload else []
        if not files:
            raise Refusal("choose a file first.")
        if len(files) > self.limits.files:
            raise Refusal(f"{len(files):,} files are too many at once; at most {self.limits.files:,} are taken.")
        folder = Path(tempfile.mkdtemp(dir=self._requests))
        try:
            total, taken = 0, {}
            for file in files:
                path = _path(file)
                source = taken.get(path) or self._uploaded(file)
                total += source.stat().st_size
                target = next(path for path in self._places(folder, source.name) if not path.exists())
                target.parent.mkdir(exist_ok=True)
                if path in taken:  # files of one name and content, in a folder for example, are one upload
                    shutil.copyfile(source, target)
                    continue
                os.replace(source, target)
                taken[path] = target
                for parent in (source.parent, source.parent.parent):
                    if parent != self.root:
                        with contextlib.suppress(OSError):
                            parent.rmdir()
            if total > self.limits.upload_mb * MB:
                raise Refusal(f"these files are larger than {self.limits.upload_mb:g} MB together.")
            yield folder
        finally:
            for file in files:  # those that were not taken because of an error, too
                with contextlib.suppress(Refusal, OSError):
                    self._uploaded(file).unlink()
            shutil.rmtree(folder, ignore_errors=True)

    @staticmethod
    def _places(folder: Path, name: str) -> Iterator[Path]:
        yield folder / name
        number = 2
        while True:
            yield folder / f"again {number}" / name
            number += 1

    def _uploaded(self, file) -> Path:
        """The path of an uploaded file: a client may name any, and gets none but what was uploaded."""
        path = _path(file)
        if not isinstance(path, str) or "\0" in path:
            raise Refusal("this is no uploaded file.")
        resolved = Path(path).resolve()
        if not resolved.is_relative_to(self.root.resolve()) or not resolved.is_file() or Path(path).is_symlink():
            raise Refusal("the upload is no longer there: choose the file again.")
        return resolved

    def new_download(self, name: str) -> Path:
        """Returns a path for a file that the visitor may fetch for some time."""
        return Path(tempfile.mkdtemp(prefix="download-", dir=self.root)) / name

    def _sweep(self):
        age = self.limits.keep_minutes * 60
        while not self._stopped.wait(min(60.0, age)):
            for path in self.root.rglob("*"):
                with contextlib.suppress(OSError):
                    if time.time() - path.stat().st_ctime > age:
                        path.rmdir() if path.is_dir() else path.unlink()


def _path(file):
    path = file.get("path") if isinstance(file, dict) else file
    return path if isinstance(path, str) else None
