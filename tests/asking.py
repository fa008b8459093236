"""The app in tests: what clients ask it and upload, and what is left of that."""

import pytest

gradio_client = pytest.importorskip("gradio_client", reason="gradio is not installed")
Client, handle_file = gradio_client.Client, gradio_client.handle_file


def new_client(served) -> "Client":
    return Client(served.url, verbose=False, httpx_kwargs={"timeout": 120})  # the machine may be busy


def upload(paths) -> list:
    return [handle_file(str(path)) for path in paths]


def uploaded(uploads, *names: str) -> list[dict]:
    """Files that visitors uploaded, as Gradio describes them."""
    paths = [uploads.root / f"visitor{number}" / "digest" / name for number, name in enumerate(names)]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_text("0")
    return [{"path": str(path)} for path in paths]


def left_behind(served) -> list[str]:
    """Uploads that are still there, in the folder that visitors write to and in that of requests."""
    folders = (served.app.uploads.root, served.app.uploads._requests)
    return [
        str(path)
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and "download-" not in str(path)
    ]
