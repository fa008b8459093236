"""A server that speaks the Hub's endpoints, and the commands of a user of it; each test file has its own."""

import contextlib
import io

import pytest
from hub_server import HubServer
from huggingface_hub import ModelCard, constants, hf_api

from melp.convert.__main__ import main as convert_main
from melp.hub.__main__ import main


@pytest.fixture(scope="module")
def server():
    with HubServer({"hf_doctor": "doctor", "hf_other": "other"}) as server:
        yield server


@pytest.fixture(scope="module")
def hub(server, tmp_path_factory):
    """`hub(*arguments, token=...)` runs `python -m melp.hub` as a user of `server`; gives its words and its error."""
    home, url = tmp_path_factory.mktemp("pusher"), server.url
    places = {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"}
    places |= {"HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN_PATH": str(home / "token"), "HF_HUB_DISABLE_XET": True}
    commands = {"validate": lambda paths: ModelCard.load(*paths).validate(), "convert": convert_main}

    def call(*arguments, token: str | None = "hf_doctor") -> tuple[str, str | None]:
        printed, error = io.StringIO(), None
        command, *rest = map(str, arguments)
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
            for name, value in places.items():
                patch.setattr(constants, name, value)
            patch.setattr(hf_api.api, "endpoint", url)
            patch.setenv("HF_TOKEN", token) if token else patch.delenv("HF_TOKEN", raising=False)
            try:
                commands[command](rest) if command in commands else main([command, *rest])
            except SystemExit as stopped:
                error = str(stopped.code)
            except ValueError as refused:
                error = str(refused)
        return printed.getvalue(), error

    return call
