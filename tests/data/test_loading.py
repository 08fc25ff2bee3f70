import gzip
import json

import pytest
from datasets import Dataset, DatasetDict, IterableDatasetDict

from plaudit.data.loading import load_source, take_split
from plaudit.errors import ConfigError, DataError

ROWS = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": "None" if i else 'bad, "so"\nto say'} for i in range(6)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.parquet", "a.csv", "a.csv.gz"])
@pytest.mark.parametrize("streaming", [False, True])
def test_every_kind_of_file_gives_the_same_rows(write, name, streaming):
    splits = load_source(write(name, ROWS), streaming=streaming)
    assert isinstance(splits, IterableDatasetDict if streaming else DatasetDict)
    assert {split: list(part) for split, part in splits.items()} == {"train": ROWS}


def test_a_folder_gives_its_splits(tmp_path, write, caplog):
    write("d/train-00000-of-00002.jsonl", ROWS[:2])
    write("d/train-00001-of-00002.jsonl", ROWS[2:4])
    write("d/test/data.jsonl.gz", ROWS[4:])
    write("d/notes.jsonl", [{"note": "x"}])
    write("d/.git/train.jsonl", [{"note": "x"}])
    splits = load_source(str(tmp_path / "d"))
    assert {split: list(part) for split, part in splits.items()} == {"train": ROWS[:4], "test": ROWS[4:]}
    assert "notes.jsonl" in caplog.text


def test_a_folder_without_split_names_is_all_train(tmp_path, write):
    write("d/a.parquet", ROWS[:3])
    write("d/b.parquet", ROWS[3:])
    assert list(load_source(str(tmp_path / "d"))["train"]) == ROWS


def test_a_saved_dataset_or_dictionary_of_them(tmp_path):
    dataset = Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "one")
    DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(tmp_path / "two")
    assert list(load_source(str(tmp_path / "one"))["train"]) == ROWS
    assert list(load_source(str(tmp_path / "two"))["test"]) == ROWS[:1]
    assert list(load_source(str(tmp_path / "two"), streaming=True)["train"]) == ROWS


def test_optional_fields_may_come_late_and_numbers_may_turn_fractional(write):
    plain = [{"chosen": "x" * 2_000, "rejected": "b", "margin": 1} for _ in range(6_000)]  # more than one 10 MB block
    path = write("a.jsonl", [*plain, {"chosen": "a", "rejected": "b", "margin": 1.5, "subset": "s"}])
    train = load_source(path)["train"]
    assert (train[0]["margin"], train[0]["subset"], train[-1]["margin"], train[-1]["subset"]) == (1.0, None, 1.5, "s")


def test_one_split_or_a_slice_of_it(write):
    path = write("a.jsonl", ROWS)
    splits = load_source(path)
    assert take_split(splits, "train", path) is splits["train"]
    assert take_split(splits, "train[:50%]", path)["prompt"][:] == ["p0", "p1", "p2"]
    assert take_split(splits, "train[:1]+train[-1:]", path)["prompt"][:] == ["p0", "p5"]
    with pytest.raises(DataError, match=r"'test'.*has the splits train"):
        take_split(splits, "test", path)
    with pytest.raises(DataError, match=r"'train\[oops\]'.*has the splits train"):
        take_split(splits, "train[oops]", path)
    with pytest.raises(ConfigError, match=r"stream cannot be sliced.*dataset_streaming"):
        take_split(load_source(path, streaming=True), "train[:1]", path)


@pytest.mark.parametrize("path", ["nowhere.jsonl", "data/nowhere.csv.gz", "/no/such/folder", "./data", "a/b/c"])
def test_a_path_without_a_file_is_not_looked_up_on_the_hub(path):
    with pytest.raises(DataError, match="expected a file or folder at") as error:
        load_source(path)
    assert repr(path) in str(error.value)
    assert "hub" not in str(error.value)


@pytest.mark.parametrize("name", ["plaudit-tests/no-such-dataset", "no_such_dataset"])
def test_an_unreachable_hub_id_is_one_clear_error(name):
    with pytest.raises(
        DataError, match=r"cannot load the dataset .*file, a folder or a hub id.*HF_HUB_OFFLINE"
    ) as error:
        load_source(name)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.jsonl", lines(ROWS[:2]) + '{"prompt": "x", "cho\n' + lines(ROWS[2:]), "line 3"),
        ("a.jsonl.gz", lines(ROWS[:4]) + "\n{'prompt': 1}\n", "line 6"),
        ("a.json", '[\n {"prompt": "a"},\n {"prompt" "b"}\n]\n', "line 3"),
    ],
)
def test_a_broken_json_line_is_named(tmp_path, write, name, text, line):
    path = tmp_path / name
    with gzip.open(path, "wt") if name.endswith(".gz") else path.open("w") as file:
        file.write(text)
    with pytest.raises(DataError, match=line) as error:
        load_source(str(path))
    assert str(path) in str(error.value)
    assert "not valid JSON" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.jsonl", b"", "expected rows in"),
        ("a.jsonl", b"\n \n", "expected rows in"),
        ("a.parquet", b"", "check that it is whole"),
        ("a.json", b"[]", "expected rows in"),
        ("a.csv", b"chosen,rejected\n", "expected rows in"),
        ("a.jsonl.gz", b"no gzip", "check that it is whole"),
        ("a.parquet", b"no parquet", "cannot read"),
        ("a.xlsx", b"x", "cannot tell what"),
    ],
)
def test_files_which_cannot_be_read(tmp_path, name, content, part):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=part) as error:
        load_source(str(tmp_path / name))
    assert name in str(error.value)


def test_folders_which_cannot_be_read(tmp_path, write):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"\.jsonl.*save_to_disk"):
        load_source(str(tmp_path / "empty"))
    write("mixed/a.jsonl", ROWS)
    write("mixed/b.parquet", ROWS)
    with pytest.raises(DataError, match=r"one kind.*json, parquet"):
        load_source(str(tmp_path / "mixed"))
    write("uneven/a.jsonl", [{"chosen": "a"}])
    write("uneven/b.jsonl", [{"chosen": "a", "other": 1}])
    with pytest.raises(DataError, match=r"uneven/a\.jsonl.*same columns"):
        load_source(str(tmp_path / "uneven"))
    with pytest.raises(ConfigError, match="no configuration 'x'"):
        load_source(str(tmp_path / "mixed" / "a.jsonl"), config="x")


@pytest.mark.parametrize(
    ("column", "expected"), [("margin", "a number"), ("label", "a number"), ("tie", "true or false")]
)
def test_a_cell_of_csv_that_is_no_annotation_is_named(tmp_path, column, expected):
    (tmp_path / "a.csv").write_text(f"chosen,rejected,{column}\na,b,\na,b,maybe\n")
    with pytest.raises(DataError, match=f"a.csv, column '{column}': expected {expected} or an empty cell: .*maybe"):
        load_source(str(tmp_path / "a.csv"))
