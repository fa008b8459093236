"""What of the named files and folders is a recording: segments, stacks, names that no table holds."""

import os
from pathlib import Path

import pytest

from melp.predict.paths import list_recordings


def test_names_that_no_table_holds_are_left_out_and_named(ecgs, tmp_path):
    for name in (b"M\xfcller.xml", b"Jos\xe9"):
        (tmp_path / os.fsdecode(name)).write_text("x")
    (tmp_path / "a.xml").write_text("x")
    with pytest.warns(UserWarning, match=r"not in UTF-8; rename them: \S+Jos\\xe9, \S+M\\xfcller.xml$"):
        assert list_recordings([str(tmp_path)]).to_pylist() == [str(tmp_path / "a.xml")]


def test_segments_are_read_with_their_record(tmp_path):
    for name in ("b.hea", "b_0001.hea", "b_0001.dat", "b_layout.hea", "c_0001.hea", "c_0001.dat"):
        (tmp_path / name).write_bytes(b"")
    listed = list_recordings([str(tmp_path)]).to_pylist()
    assert [Path(path).name for path in listed] == ["b.hea", "c_0001.hea"]


def test_stacks_are_known_by_their_content(models, ecgs, tmp_path):
    import gzip

    data = (ecgs / "stack.npz").read_bytes()
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "export").write_bytes(data)
    (tmp_path / "in" / "deep" / "export.bin.gz").write_bytes(gzip.compress(data))
    listed = [Path(path).name for path in list_recordings([str(tmp_path / "in")]).to_pylist()]
    assert listed == [*(f"export#{n}" for n in range(3)), *(f"export.bin.gz#{n}" for n in range(3))]
