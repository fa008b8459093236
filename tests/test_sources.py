"""Names that a user may give: folders, files and Hub ids with and without a revision."""

import pytest

from melp.sources import check_model, check_prepared, check_split, fetch, parse_source, pin, without_revision


def test_what_is_on_this_disk_is_that(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name@v1").mkdir(parents=True)
    assert parse_source("org/name@v1").path is not None and parse_source("org").repo_id is None
    assert fetch("org/name@v1").is_dir() and pin("org/name@v1") == "org/name@v1"
    assert without_revision("org/name@v1") == "org/name@v1" and without_revision("org/other@v1") == "org/other"


@pytest.mark.parametrize(
    "name, repo_id, file, revision",
    [
        ("org/name", "org/name", None, None),
        ("org/name@v1.0", "org/name", None, "v1.0"),
        ("org/name@refs/pr/3", "org/name", None, "refs/pr/3"),
        ("gpt2", "gpt2", None, None),
        ("org/name/sub/last.ckpt@abc123", "org/name", "sub/last.ckpt", "abc123"),
    ],
)
def test_hub_ids(name, repo_id, file, revision):
    source = parse_source(name)
    assert (source.path, source.repo_id, source.file, source.revision) == (None, repo_id, file, revision)


@pytest.mark.parametrize("name", ["", "/nowhere/model", "./model", "../model", "~/model", "org/name@", "a b", "a@b@c"])
def test_what_is_neither_is_refused_without_a_request(name):
    with pytest.raises(ValueError, match="neither on this disk nor a Hub id"):
        parse_source(name)


def test_a_folder_on_this_disk_is_looked_at_before_it_is_opened(tmp_path):
    for name in ("org/name", "org/name@v1"):
        check_model(name), check_prepared(name), check_split([name], "dev")  # the Hub will say
    with pytest.raises(ValueError, match="is no model folder: it has no config.json"):
        check_model(tmp_path)
    for name in (tmp_path, "org/name/file.parquet"):
        with pytest.raises(ValueError, match="is not a prepared folder .it has no dataset_dict.json.: make one with"):
            check_prepared(name)
    (tmp_path / "config.json").touch(), check_model(tmp_path)
    file = tmp_path / "dataset_dict.json"
    for damaged in ("{}", '{"splits": 3}'):
        file.write_text(damaged)
        check_prepared(tmp_path), check_split([str(tmp_path)], "dev")  # whoever opens it says what is damaged
    file.write_text('{"splits": ["train", "test"]}')
    check_split([str(tmp_path)], "test"), check_split([str(tmp_path)], "all")
    with pytest.raises(ValueError, match="has no split 'dev'; it has train, test"):
        check_split([str(tmp_path)], "dev")
