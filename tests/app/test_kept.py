"""What a visitor read is forgotten when he leaves, and after its time without any request."""

import time

import pytest

from melp.app.kept import Kept
from melp.app.limits import Limits

ui = pytest.importorskip("melp.app.ui")


def test_a_visitor_who_leaves_is_forgotten(served):
    kept = Kept(minutes=1)
    recording = served.app.engine.simulated("synthetic-0000000-0")
    kept.put("visitor", [recording])
    assert kept.get("visitor") == [recording] and kept.get("other") == []
    kept.forget("visitor")
    assert len(kept) == 0
    kept = Kept(minutes=1e-9)
    kept.put("visitor", [recording])
    time.sleep(0.01)
    assert kept.get("visitor") == []


def test_what_nobody_asks_about_is_forgotten_without_a_further_request(served, uploads):
    app, uploads.limits = ui.App(served.app.engine, uploads), Limits(keep_minutes=0.001)
    app.kept, app.last_hits = Kept(minutes=0.001), Kept(minutes=0.001)
    app.kept.put("visitor", [served.app.engine.simulated("synthetic-0000000-0")])
    app.last_hits.put("visitor", [{"record": "a"}])
    uploads.start(app.expire)
    ends = time.monotonic() + 60
    while len(app.kept) or len(app.last_hits):
        assert time.monotonic() < ends
        time.sleep(0.02)
