"""YAML files of users: what would be lost is refused."""

import pytest

from melp.yaml_file import read_yaml


@pytest.mark.parametrize(
    "text, line",
    [("a: 1\nb: 2\na: 3\n", 1), ("findings:\n  a: [x]\n  b: [y]\n  a: [z]\n", 2), ("- {a: 1, a: 2}\n", 1)],
)
def test_a_key_that_occurs_twice_is_refused(tmp_path, text, line):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"file.yaml has the key 'a' twice in what begins at line {line}: keep one"):
        read_yaml(path)


def test_the_same_key_in_different_places_is_read(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text("x: &part {a: 1}\ny: *part\nz: [{a: 2}, {a: 3}]\n")
    assert read_yaml(path, aliases=True) == {"x": {"a": 1}, "y": {"a": 1}, "z": [{"a": 2}, {"a": 3}]}
    path.write_text("")
    assert read_yaml(path) is None
