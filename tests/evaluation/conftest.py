"""What the tests of evaluation share."""

import pytest


@pytest.fixture(autouse=True)
def few_strengths(monkeypatch):
    """Two regularisation strengths for every probe: five take most of a test's time and show no more."""
    monkeypatch.setattr("melp.evaluation.probe.REGULARISATION", (0.01, 1.0))
