"""Starts the app: the model is loaded while the page is built, and requests are served until it is stopped."""

import os
import socket
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from melp.app.engine import Engine, Settings
from melp.app.kept import MOST
from melp.app.reader import Reader
from melp.app.uploads import Uploads


@dataclass
class Served:
    """An app that answers at `url`; `app` is what is behind it."""

    url: str
    app: object
    page: object


@contextmanager
def serving(
    settings: Settings, host: str | None = None, port: int | None = None, root_path: str | None = None, quiet=True
):
    """Serves the app as long as the context lasts.

    Args:
        host: by default loopback, or what GRADIO_SERVER_NAME says, as it does in a Space.
        port: by default 7860, or the next that is free; 0 for any.
        root_path: where a reverse proxy shows it.
    """
    limits = settings.limits
    with ExitStack() as at_end:  # of what has begun, whatever fails after it
        reader = Reader(limits)
        at_end.callback(reader.close)
        reader.start()
        engine, uploads = Engine(settings, reader), Uploads(limits)
        at_end.callback(uploads.close)
        # Read when Gradio is imported or launched: nothing is sent anywhere, nothing kept in the browser or history.
        os.environ.update(
            GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(uploads.root), GRADIO_RUN_HISTORY="False",
            HF_HUB_DISABLE_TELEMETRY="1", GRADIO_SHARE="False", GRADIO_MCP_SERVER="False",
            # Else every answer adds to a table of the last 10,000 requests, and sums it up for a page not served.
            GRADIO_ANALYTICS_MAX_EVENTS="1", GRADIO_ANALYTICS_CACHE_FREQUENCY=str(10**9),
        )  # fmt: skip
        from starlette.middleware import Middleware

        from melp.app import ui
        from melp.app.gate import Gate

        app = ui.App(engine, uploads)
        page = ui.build(app)
        at_end.callback(page.close, verbose=False)
        page.queue(max_size=int(limits.queue), default_concurrency_limit=2, api_open=False)
        gate = Middleware(Gate, uploads=uploads, limits=limits)
        _, url, _ = page.launch(
            server_name=host, server_port=free_port() if port == 0 else port, root_path=root_path, share=False,
            prevent_thread_lock=True, quiet=quiet, show_error=True, max_file_size=int(limits.file_mb * 2**20),
            allowed_paths=[], run_history=False, footer_links=["api"], theme=ui.theme(), css=ui.static("page.css"),
            app_kwargs={"middleware": [gate], "docs_url": None, "redoc_url": None}, head=ui.head(), ssr_mode=False,
            pwa=False, mcp_server=False, enable_monitoring=False, strict_cors=True, state_session_capacity=MOST,
        )  # fmt: skip
        uploads.start(app.expire)
        yield Served(url, app, page)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
