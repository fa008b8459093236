"""The published tables of splits and labels are read whole and by name, or refused."""

import ast
import gzip

import pandas as pd
import pytest

from melp.databases import published

SIZES = {
    "ptbxl": {
        "superclass": (17084, 2146, 2158, 5),
        "subclass": (17084, 2146, 2158, 23),
        "form": (7197, 901, 880, 19),
        "rhythm": (16832, 2100, 2098, 12),
    },
    "cpsc2018": {"cpsc2018": (4950, 551, 1376, 9)},
    "csn": {"csn": (16546, 1860, 4620, 38)},
}


@pytest.mark.real_data
@pytest.mark.parametrize("database", [pytest.param("ptbxl", marks=pytest.mark.slow), "cpsc2018", "csn"])
def test_published_tables_are_read_whole_and_by_name(ecg_data, database):
    frame, names = published.read_tables(ecg_data / "splits", database)
    for label_set, sizes in SIZES[database].items():
        listed = frame[frame[label_set].notna()]
        counted = tuple(listed["split"].value_counts()[["train", "validation", "test"]])
        assert (*counted, len(names[label_set])) == sizes
    if database == "ptbxl":  # these tables hold the subclasses a second time, as text: places of columns do not matter
        for path in published.table_files(ecg_data / "splits", database)[3:6]:
            table = pd.read_csv(path)
            labels = frame["subclass"].reindex(table["filename_hr"].map(published.record_key))
            for classes, text in zip(labels, table["sub_class"], strict=True):
                assert set(classes) == set(ast.literal_eval(text))


def test_tables_that_contradict_each_other_are_refused(tmp_path):
    folder = tmp_path / "icbeb"
    folder.mkdir()
    for part, name in (("train", "A1"), ("val", "A2"), ("test", "A3")):
        text = f"\nfilename,age,AFIB,STD\n{name},50,1,0\n".encode()
        path = folder / f"icbeb_{part}.csv"
        path.write_bytes(text) if part == "val" else path.with_name(path.name + ".gz").write_bytes(gzip.compress(text))
    frame, classes = published.read_tables(tmp_path, "cpsc2018")
    assert classes == {"cpsc2018": ["AFIB", "STD"]} and frame["cpsc2018"].tolist() == [["AFIB"]] * 3
    (folder / "icbeb_val.csv").write_text("filename,age,STD,AFIB\nA1,50,1,0\n")
    with pytest.raises(ValueError, match="A1 in two splits"):
        published.read_tables(tmp_path, "cpsc2018")
    (folder / "icbeb_val.csv").write_text("filename,age,STD,AFL\nA2,50,1,0\n")
    with pytest.raises(ValueError, match="icbeb_val.csv: its classes are not those"):
        published.read_tables(tmp_path, "cpsc2018")
    (folder / "icbeb_val.csv").unlink()
    with pytest.raises(ValueError, match="no icbeb/icbeb_val.csv"):
        published.read_tables(tmp_path, "cpsc2018")
