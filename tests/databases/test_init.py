"""Every module of a database offers what the interface asks."""

import re

import pyarrow as pa
import pyarrow.csv
import pytest

from melp.databases import DATABASES
from melp.prepare.dataset_card import card_data


@pytest.mark.parametrize("name", sorted(set(DATABASES.values())))
def test_a_module_says_what_the_interface_asks(name):
    import argparse
    import importlib

    module = importlib.import_module(name)
    module.add_arguments(argparse.ArgumentParser())
    assert {"name", "version", "licence", "citation", "url"} == set(module.SOURCE)
    assert isinstance(module.VERSION, int) and hasattr(module, "LABEL_SETS") != hasattr(module, "label_sets")
    assert callable(module.plan) and callable(module.read) and callable(module.inputs)
    for dtype in getattr(module, "EXTRA", {}).values():
        assert pa.type_for_alias(dtype)
    metadata = card_data(module.SOURCE, "Title", ["train"])
    assert metadata.license == {
        "mimic": "odbl",
        "challenge": "other",
        "manifest": "other",
        "corpus": "apache-2.0",
    }.get(name.rpartition(".")[2], "cc-by-4.0")
    assert metadata.license != "other" or re.fullmatch(r"[a-z0-9.-]+", metadata.license_name)  # the Hub's own rule
