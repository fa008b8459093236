"""Fixtures of the tests of evaluation: they leave out what takes most of the time and shows no more."""

import pytest


@pytest.fixture(autouse=True)
def few_strengths(monkeypatch):
    """Two regularisation strengths for every probe."""
    monkeypatch.setattr("melp.evaluation.probe.REGULARISATION", (0.01, 1.0))


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """No pictures but where a test asks for the fixture `pictures`."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("melp.evaluation.results.Results._draw", lambda results, folder: [])


@pytest.fixture
def pictures():
    """Pictures are drawn."""
