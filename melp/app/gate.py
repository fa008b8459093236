"""Which of Gradio's routes there are: what page and clients need, and nothing that reads or calls elsewhere."""

import json
import os
import re
import secrets
import shutil
from pathlib import Path
from urllib.parse import unquote

from melp.app.limits import MB, Limits, Refusal, explained
from melp.app.uploads import Uploads

# Left out, for example: api/ and run/, which pass the queue by, proxy=, file=https://..., deep links, streams, run
# history, and developers' tools.
ALLOWED = re.compile(
    r"/(|config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|login_check|static/.*|assets/.*|svelte/.*"
    r"|gradio_api/(|info|openapi\.json|heartbeat/\w+|queue/(join|data|status)|call/.*|upload|upload_progress|cancel|reset"
    r"|startup-events|app_id|login_check|theme\.css|file=.*))/?"
)
OVERHEAD = 2**16  # bytes of a multipart request beside its files
MOST_OF_A_CALL = 4 * MB  # bytes of a request that uploads nothing
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"frame-ancestors 'self' https://huggingface.co https://*.hf.space"),
)


class Counted:
    """Hands on what a request sends, up to so many bytes, whatever it says of its length, or does not say.

    Raises:
        OverflowError: where it is more.
    """

    def __init__(self, receive, most: float):
        self.most, self._receive, self._read = most, receive, 0

    @property
    def is_over(self) -> bool:
        return self._read > self.most

    async def __call__(self):
        message = await self._receive()
        self._read += len(message.get("body", b""))
        if self.is_over:
            raise OverflowError
        return message


class Gate:
    """ASGI middleware: refuses other routes, files outside the folder of this app, and uploads that are too large.

    An error that Gradio does not catch ends here: the server would print it with what the request held.

    Every upload gets a folder with an unguessable name: Gradio's own, named by content, would let one visitor's answer
    delete another's file.
    """

    def __init__(self, app, uploads: Uploads, limits: Limits):
        self.app, self.uploads, self.limits = app, uploads, limits

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        is_upload = path.rstrip("/") == "/gradio_api/upload" and scope["method"] == "POST"
        counted = Counted(receive, self.limits.upload_mb * MB + OVERHEAD if is_upload else MOST_OF_A_CALL)
        if not ALLOWED.fullmatch(path) or not self._is_ours(path):
            await _answer(send, 404, "There is nothing here.")
        elif _is_larger(scope, counted.most):
            await _answer(send, 413, _too_large(counted))
        elif is_upload:
            await self._upload(scope, counted, send)
        else:
            await self._pass(scope, counted, send)

    async def _pass(self, scope, counted: Counted, send):
        begun = False

        async def sending(message):
            nonlocal begun
            if begun or not counted.is_over:  # else Gradio's answer to the part that it got
                begun = True
                await send(message)

        try:
            await self.app(scope, counted, _with_headers(sending))
        except Exception as error:
            text = _too_large(counted) if counted.is_over else explained(error)
            if not begun:
                await _answer(send, 413 if counted.is_over else 500, text)
        else:
            if counted.is_over and not begun:
                await _answer(send, 413, _too_large(counted))

    def _is_ours(self, path: str) -> bool:
        """Tells whether a path of `file=` lies in this app's folder, after all that it may be encoded in."""
        prefix = "/gradio_api/file="
        if not path.startswith(prefix):
            return True
        name = unquote(path[len(prefix) :])
        if "\0" in name or "://" in name:
            return False
        return Path(os.path.realpath(name)).is_relative_to(os.path.realpath(self.uploads.root))

    async def _upload(self, scope, counted: Counted, send):
        from gradio.route_utils import upload_fn
        from starlette.requests import Request

        folder, most = self.uploads.root / secrets.token_hex(16), int(self.limits.file_mb * MB)

        async def receive():
            message = await counted()
            self.uploads.check_room()
            return message

        try:
            self.uploads.check_room()
            paths, *_ = await upload_fn(Request(scope, receive), str(folder), most, None)
        except Exception as error:  # of the form parser, a client that went away, a full disk
            shutil.rmtree(folder, ignore_errors=True)
            status, text = 400, "This upload cannot be read."
            if isinstance(error, Refusal):
                status, text = 507, str(error)
            elif counted.is_over or "maximum allowed size" in str(getattr(error, "message", "")):
                status, text = (
                    413,
                    f"A file may have {self.limits.file_mb:g} MB, all together {self.limits.upload_mb:g} MB.",
                )
            await _answer(send, status, text)
            return
        await _answer(send, 200, json.dumps([str(path) for path in paths]), b"application/json")


def _is_larger(scope, most: float) -> bool:
    """Tells whether a request says of itself that it is larger than that, or says what is no length."""
    stated = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return not stated.isdigit() or int(stated) > most


def _too_large(counted: Counted) -> str:
    return f"This is larger than {counted.most / MB:.0f} MB: take fewer or smaller files."


async def _answer(send, status: int, text: str, kind: bytes = b"text/plain; charset=utf-8"):
    headers = [(b"content-type", kind), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def _with_headers(send):
    async def sending(message):
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *HEADERS]}
        await send(message)

    return sending
