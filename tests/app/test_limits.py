"""Hostile files get a message that quotes nothing of them, and limits are above zero."""

import logging
import zipfile
from pathlib import Path

import pytest
from asking import left_behind, upload

from melp.app.limits import Limits, without_quotations


def bomb(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.csv", b"0" * 50_000_000)
    return path


def hostile_xml(path: Path) -> Path:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    path.write_text(f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e0 "Mustermann">{entities}]><x>&e11;</x>')
    return path


def outside_xml(path: Path) -> Path:
    path.write_text('<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>')
    return path


def wrong_extension(path: Path) -> Path:
    path.write_bytes(b"Mustermann was here " * 100)
    return path.rename(path.with_suffix(".dcm"))


def truncated(path: Path) -> Path:
    path.write_bytes(b"\0" * 128 + b"DICM" + b"Mustermann" * 20)
    return path


@pytest.mark.parametrize("make", [bomb, hostile_xml, outside_xml, wrong_extension, truncated])
def test_what_is_no_ecg_gets_a_message_and_leaves_no_trace(client, served, make, tmp_path, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    path = make(tmp_path / ("bad.zip" if make is bomb else "bad.xml"))
    with pytest.raises(Exception) as error:
        client.predict(upload([path]), api_name="/read")
    message, heard = str(error.value), capfd.readouterr()
    assert "bad" in message or "holds more" in message
    for text in (message, heard.out, heard.err):
        assert "Mustermann" not in text and "root:" not in text and "Traceback" not in text
    assert not [record for record in caplog.records if record.name.startswith("melp") and "Muster" in record.message]
    assert not left_behind(served)


def test_errors_quote_nothing():
    assert without_quotations("wrong header: gain is 'Erika Mustermann', not a number; correct the header") == (
        "wrong header: gain is (not shown), not a number; correct the header"
    )
    assert without_quotations("too long; name a part by --start") == "too long; take a shorter part of it"


@pytest.mark.parametrize("limits", [{"seconds": 0}, {"file_mb": -1}])
def test_limits_are_above_zero(limits):
    with pytest.raises(ValueError, match="must be above 0"):
        Limits(**limits)
