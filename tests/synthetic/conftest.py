"""The synthetic recordings that several test files share."""

import pytest
from synthetic_records import RECORDS

from melp.synthetic import corpus as synthetic


@pytest.fixture(scope="session")
def records():
    """The demo's corpus: 28 findings in their textbook form."""
    return [synthetic.read(item) for item in synthetic.plan(records=RECORDS, seed=3, variety="textbook").to_pylist()]
