"""Uploaded files: where they lie, for how long, and how those of one recording come together."""

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
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

    def start(self, also: Callable[[], None]):
        """Sweeps from now on what nobody came for: uploads without a request, downloads after their time.

        Args:
            also: called each time, for what else has a time.
        """
        threading.Thread(target=self._sweep_on, args=(also,), daemon=True).start()

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
            Refusal: where there are none, too many or too large ones, one was not uploaded, or it is not known which
                of several WFDB headers of a name belongs to which samples.
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
            check_pairs(os.path.basename(_path(file)) for file in files)
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
        """Returns the path of an uploaded file: a client may name any, and gets none but what was uploaded."""
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

    def check_room(self):
        """Raises Refusal where further uploads would fill the disk: each has a limit, their number has none."""
        disk = shutil.disk_usage(self.root)
        if disk.free < min(disk.total / 10, self.limits.unpacked_mb * MB):
            raise Refusal("There is no room for uploads now: try again later.")

    def _sweep_on(self, also: Callable[[], None]):
        while not self._stopped.wait(min(60.0, self.limits.keep_minutes * 60)):
            self.sweep()
            also()

    def sweep(self):
        """Deletes downloads and uploads after their time, which a batch that waits for another does not lose."""
        downloads = self.limits.keep_minutes * 60
        uploads = max(downloads, 2 * self.limits.batch_seconds)
        # Not rglob: it ends at a folder that a request removes meanwhile.
        for folder, folders, files in os.walk(self.root, topdown=False):
            for path in (Path(folder, name) for name in (*files, *folders)):
                top = path.relative_to(self.root).parts[0]
                with contextlib.suppress(OSError):
                    if time.time() - path.stat().st_ctime > (downloads if top.startswith("download-") else uploads):
                        path.rmdir() if path.is_dir() else path.unlink()


def check_pairs(names: Iterable[str]):
    """Checks that WFDB headers of one name, of several folders, have samples each: without their folders, which an
    upload does not state, a header without any would be read with those of another.

    Raises:
        Refusal: for a name of which there are fewer or more headers than samples.
    """
    stems = [os.path.splitext(name.removesuffix(".gz")) for name in names]
    headers, samples = (
        Counter(stem for stem, suffix in stems if suffix.lower() in wanted) for wanted in ((".hea",), (".dat", ".mat"))
    )
    for name in headers.keys() & samples.keys():
        if headers[name] != samples[name]:
            raise Refusal(
                f"there are {headers[name]} headers {name}.hea and {samples[name]} files with samples of this name: "
                "take one folder at a time."
            )


def _path(file):
    path = file.get("path") if isinstance(file, dict) else file
    return path if isinstance(path, str) else None
