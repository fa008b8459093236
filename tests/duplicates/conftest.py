"""A corpus to copy from."""

import pytest

from melp.prepare.folder import prepare


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return prepare("synthetic", tmp_path_factory.mktemp("duplicates") / "corpus", records=80)
