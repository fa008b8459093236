"""What the tests of training leave out."""

import functools

import pytest


@pytest.fixture(scope="session", autouse=True)
def short_peak():
    """A device's peak is measured in a moment instead of three seconds: no test asks how large it is."""
    from melp.training import speed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "matrix_peak", functools.partial(speed.matrix_peak, seconds=0.01))
        yield
