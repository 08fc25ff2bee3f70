import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Value

from plaudit.data.loading import load_source
from plaudit.data.reader import Source
from plaudit.errors import ConfigError, DataError


def rows_of(path):
    return [row for chunk in Source(str(path)).chunks(2) for row in chunk.rows]


def written(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)] if ".csv" in path.name else None
    text = "\n".join(lines or map(json.dumps, rows)) + "\n"
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as file:
        file.write(text)
    return path


# training and scoring


TEXTS = [
    {"prompt": "2+2?", "chosen": "4", "rejected": "05"},
    {"prompt": None, "chosen": "NA", "rejected": "null"},
    {"prompt": "Say it.\nTwice.", "chosen": 'so, "so"', "rejected": " None "},
]


@pytest.mark.parametrize(
    "name", ["in.csv", "in.csv.gz", "in.json", "in.json.gz", "in.jsonl", "in.jsonl.gz", "in.parquet"]
)
@pytest.mark.parametrize("streaming", [False, True])
def test_training_and_scoring_read_the_same_rows(write, name, streaming):
    path = write(name, TEXTS)
    assert rows_of(path) == list(load_source(path, streaming=streaming)["train"]) == TEXTS


@pytest.mark.parametrize("streaming", [False, True])
def test_an_empty_cell_of_csv_is_no_value_and_training_reads_numbers(tmp_path, streaming):
    (tmp_path / "in.csv").write_text('chosen,rejected,margin,tie,id\na,b,0.50,True,01\na,"",,,\n')
    path = str(tmp_path / "in.csv")
    one, two = list(load_source(path, streaming=streaming)["train"])
    assert one == {"chosen": "a", "rejected": "b", "margin": 0.5, "tie": True, "id": "01"}
    assert two == {"chosen": "a", "rejected": None, "margin": None, "tie": None, "id": None}
    assert rows_of(path) == [{"chosen": "a", "rejected": "b", "margin": "0.50", "tie": "True", "id": "01"}, two]


# chunks


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.csv", "in.parquet"])
def test_chunks_tell_how_far_the_source_has_been_read(tmp_path, name):
    path = written(tmp_path / name, [{"text": f"{n} " + "yes " * 2000} for n in range(40)])
    for done in ((), (0, 1, 3)):  # what is passed over has been read too
        blocks = list(Source(str(path)).chunks(4, done))
        assert [(block.number, block.first) for block in blocks] == [(n, 4 * n) for n in range(10) if n not in done]
        shares = [block.share for block in blocks]
        assert shares == sorted(shares)
        assert shares[-1] == 1
        if name != "in.jsonl.gz":  # of which little is there
            assert len(set(shares)) > 3
    expected = [{"text": f"{n} " + "yes " * 2000} for n in range(12, 16)]
    assert list(Source(str(path)).chunks(4))[3].rows == expected


def test_csv_as_spreadsheets_write_it_keeps_its_columns_and_its_cells(tmp_path):
    (tmp_path / "in.csv").write_bytes(b'\xef\xbb\xbftext,n\r\n"Is it?\r\nYes.",1\r\nNo,2\r\n\r\n')
    assert rows_of(tmp_path / "in.csv") == [{"text": "Is it?\r\nYes.", "n": "1"}, {"text": "No", "n": "2"}]


def test_a_cell_of_csv_may_be_as_long_as_a_conversation(tmp_path):
    limit = csv.field_size_limit(1 << 17)  # Python's own, whatever an earlier test has left
    try:
        rows = [{"text": "yes " * 50_000}]
        assert rows_of(written(tmp_path / "in.csv", rows)) == rows
    finally:
        csv.field_size_limit(limit)


def test_a_column_that_comes_twice_in_csv_is_an_error(tmp_path):
    (tmp_path / "in.csv").write_text("text,n,text\nYes.,1,No.\n")
    with pytest.raises(DataError, match=f"^{tmp_path}/in.csv: expected each column once, got text, n, text"):
        rows_of(tmp_path / "in.csv")


def test_empty_lines_are_no_rows_and_count_as_lines(tmp_path):
    (tmp_path / "in.jsonl").write_text('\n{"text": "Yes."}\n \r\n{\n')
    good, bad = rows_of(tmp_path / "in.jsonl")
    assert good == {"text": "Yes."}
    assert bad.reason.startswith("line 4 is not valid JSON")
    assert bad.content == "{"


@pytest.mark.parametrize("options", [{"config": "main"}, {"split": "test"}])
def test_a_file_has_no_configuration_and_no_splits(tmp_path, options):
    path = str(written(tmp_path / "in.jsonl", [{"text": "Yes."}]))
    with pytest.raises(ConfigError, match="in.jsonl is a file: it has no --dataset_config and no --split but 'train'"):
        Source(path, **options)


@pytest.mark.parametrize("name", ["gone.jsonl", "gone.csv", "gone.parquet"])
def test_a_file_that_is_not_there_is_said_so(tmp_path, name):
    with pytest.raises(DataError, match=f"expected a file or folder at .*{name}"):
        rows_of(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("in.jsonl.gz", b'{"text": "Yes."}\n'),  # not packed at all
        ("in.jsonl.gz", gzip.compress(b'{"text": "Yes."}\n')[:-3]),
        ("in.csv", b'text,n\n"Yes.'),
        ("in.csv", b"text\nte\xffxt\n"),
        ("in.parquet", b"PAR1, and then no more"),
    ],
    ids=["not packed", "cut short", "an open quote", "no UTF-8", "no footer"],  # gzip writes the time
)
def test_what_is_broken_is_said_of_the_file(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=f"cannot read {tmp_path / name}: .+; check that it is whole"):
        rows_of(tmp_path / name)


def test_a_folder_is_streamed_with_its_types(tmp_path):
    features = Features({"text": Value("large_string")})
    DatasetDict(test=Dataset.from_list([{"text": f"{n}"} for n in range(5)], features=features)).save_to_disk(tmp_path)
    source = Source(str(tmp_path), split="test")
    assert source.schema() == pa.schema([("text", pa.large_string())])
    chunks = list(source.chunks(3, {0}))
    assert [(chunk.number, chunk.first, chunk.rows, chunk.share) for chunk in chunks] == [
        (1, 3, [{"text": "3"}, {"text": "4"}], None)
    ]


def test_a_dataset_with_several_configurations_is_read_in_the_one_that_is_named(tmp_path, write):
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("main", "other"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for name in ("main", "other"):
        write(f"{name}.jsonl", [{"text": name}])
    assert [chunk.rows for chunk in Source(str(tmp_path), "other").chunks(2)] == [[{"text": "other"}]]
