"""Which of Gradio's routes there are: what page and clients need, and nothing that reads or calls elsewhere."""

import json
import os
import re
import secrets
import shutil
from pathlib import Path
from urllib.parse import unquote

from melp.app.limits import MB, Limits, explained
from melp.app.uploads import Uploads

# Left out, for example: proxy=, file=https://..., deep links, streams, run history, and developers' tools.
ALLOWED = re.compile(
    r"/(|config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|login_check|static/.*|assets/.*|svelte/.*"
    r"|gradio_api/(|info|openapi\.json|heartbeat/\w+|queue/(join|data|status)|call/.*|upload|upload_progress|cancel|reset"
    r"|startup-events|app_id|login_check|theme\.css|file=.*|api/\w+|run/\w+))/?"
)
OVERHEAD = 2**16  # bytes of a multipart request beside its files
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"frame-ancestors 'self' https://huggingface.co https://*.hf.space"),
)


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
        refused = None
        if not ALLOWED.fullmatch(path) or not self._is_ours(path):
            refused = 404, "There is nothing here."
        elif self._too_large(scope, path):
            refused = 413, f"This is larger than {self.limits.upload_mb:g} MB: take fewer or smaller files."
        if refused:
            await _answer(send, *refused)
        elif path.rstrip("/") == "/gradio_api/upload" and scope["method"] == "POST":
            await self._upload(scope, receive, send)
        else:
            await self._pass(scope, receive, send)

    async def _pass(self, scope, receive, send):
        begun = False

        async def sending(message):
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, _with_headers(sending))
        except Exception as error:
            text = explained(error)
            if not begun:
                await _answer(send, 500, text)

    def _is_ours(self, path: str) -> bool:
        """Whether a path of `file=` lies in this app's folder, after all that it may be encoded in."""
        prefix = "/gradio_api/file="
        if not path.startswith(prefix):
            return True
        name = unquote(path[len(prefix) :])
        if "\0" in name or "://" in name:
            return False
        return Path(os.path.realpath(name)).is_relative_to(os.path.realpath(self.uploads.root))

    def _too_large(self, scope, path: str) -> bool:
        stated = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        most = self.limits.upload_mb * MB + OVERHEAD if path.rstrip("/") == "/gradio_api/upload" else 4 * MB
        return not stated.isdigit() or int(stated) > most

    async def _upload(self, scope, receive, send):
        from gradio.route_utils import upload_fn
        from starlette.requests import Request

        folder, most = self.uploads.root / secrets.token_hex(16), int(self.limits.file_mb * MB)
        total = 0

        async def counted():
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self.limits.upload_mb * MB + OVERHEAD:
                raise OverflowError
            return message

        try:
            paths, *_ = await upload_fn(Request(scope, counted), str(folder), most, None)
        except Exception as error:  # of the form parser, a client that went away, a full disk
            shutil.rmtree(folder, ignore_errors=True)
            large = isinstance(error, OverflowError) or "maximum allowed size" in str(getattr(error, "message", ""))
            text = f"A file may have {self.limits.file_mb:g} MB, all together {self.limits.upload_mb:g} MB."
            await _answer(send, 413 if large else 400, text if large else "This upload cannot be read.")
            return
        await _answer(send, 200, json.dumps([str(path) for path in paths]), b"application/json")


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
