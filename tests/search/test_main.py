"""Search in a predict output by text and by file: nearest first, as table, CSV and sheet."""

import csv
import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny import tiny_model, tiny_processor

import predict
from findings_melp import embed_prompts
from melp.notice import NOTICE
from melp.search.__main__ import main as search
from modeling_melp import MelpModel
from signal_melp import LEADS


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """`model`, `ecgs` (six WFDB records) and `index`."""
    import wfdb

    root, random = tmp_path_factory.mktemp("search"), np.random.default_rng(0)
    tiny_model().save_pretrained(root / "model")
    tiny_processor().save_pretrained(root / "model")
    (root / "ecgs").mkdir()
    units = {"fs": 500, "units": ["mV"] * 12, "sig_name": list(LEADS), "fmt": ["16"] * 12}
    for name in "abcdef":
        walk = random.standard_normal((5000, 12)).cumsum(0) / 50
        wfdb.wrsamp(name, p_signal=walk, write_dir=str(root / "ecgs"), **units)
    arguments = [root / "ecgs", "--model", root / "model", "--output", root / "index", "--embeddings"]
    predict.main([*map(str, arguments), "--num-workers", "0"])
    return root


def search_rows(root, query, capsys, *options) -> list[dict]:
    search([str(root / "index"), str(query), "--format", "csv", *options])
    shown = capsys.readouterr().out
    assert shown.startswith(f"# {NOTICE}\n")
    return list(csv.DictReader(io.StringIO(shown.partition("\n")[2])))


@pytest.mark.parametrize("options", [(), ("--faiss",)])
def test_a_text_finds_by_cosine(root, capsys, options):
    if options:
        pytest.importorskip("faiss")
    hits = search_rows(root, "atrial fibrillation.", capsys, *options)
    model, processor = MelpModel.from_pretrained(root / "model").eval(), tiny_processor()
    paths = sorted(map(str, (root / "ecgs").glob("*.hea")))
    ecgs = model.get_ecg_features(**processor(ecg=paths, return_tensors="pt")).pooler_output.detach()
    cosines = (ecgs @ embed_prompts(model, processor, [["atrial fibrillation."]]).T)[:, 0]
    assert [hit["path"] for hit in hits] == [paths[row] for row in cosines.argsort(descending=True).tolist()]
    assert [float(hit["similarity"]) for hit in hits] == pytest.approx(
        cosines.sort(descending=True)[0].tolist(), abs=1e-5
    )


def test_a_file_finds_itself_first(root, capsys):
    (hit,) = search_rows(root, root / "ecgs" / "c", capsys, "--top", "1")
    assert hit["record"] == "c" and float(hit["similarity"]) == pytest.approx(1, abs=1e-5)


def test_a_table_and_a_sheet(root, capsys, tmp_path):
    search([str(root / "index"), "flutter", "--top", "2", "--pictures", str(tmp_path / "sheet.svg")])
    assert capsys.readouterr().out.startswith(NOTICE)
    sheet = (tmp_path / "sheet.svg").read_text()
    assert NOTICE in sheet and "Nearest to: flutter" in sheet and sheet.count("<!-- V5 -->") == 2


def test_what_cannot_be_searched_is_refused(root, tmp_path):
    arguments = [root / "ecgs" / "a", "--model", root / "model", "--output", tmp_path / "bare", "--findings", "x"]
    predict.main([*map(str, arguments), "--num-workers", "0"])
    with pytest.raises(SystemExit, match="--embeddings"):
        search([str(tmp_path / "bare"), "text"])
    with pytest.raises(SystemExit, match="no output"):
        search([str(tmp_path), "text"])
    (tmp_path / "rewritten" / "data").mkdir(parents=True)
    table = pq.read_table(root / "index" / "data").replace_schema_metadata(None)
    pq.write_table(table, tmp_path / "rewritten" / "data" / "0.parquet")
    with pytest.raises(SystemExit, match="rewritten does not say how its files were read"):
        search([str(tmp_path / "rewritten"), "text"])
    with pytest.raises(SystemExit, match="absent.dcm looks like a recording, but there is no such file"):
        search([str(root / "index"), "absent.dcm"])
    tiny_model(seed=3).save_pretrained(tmp_path / "other")
    tiny_processor().save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit, match="not the model"):
        search([str(root / "index"), "text", "--model", str(tmp_path / "other")])
