import csv
import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features, IterableDataset, Value

from plaudit.data.reader import Source
from plaudit.errors import ConfigError, DataError


def rows_of(path):
    return [row for block in Source(str(path)).chunks(2) for row in block.rows]


def written(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)] if ".csv" in path.name else None
    text = "\n".join(lines or map(json.dumps, rows)) + "\n"
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as file:
        file.write(text)
    return path


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.csv", "in.parquet"])
def test_blocks_tell_how_far_the_source_has_been_read(tmp_path, name):
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
    with pytest.raises(DataError, match=f"cannot read on in {tmp_path / name}: .+; check that it is whole"):
        rows_of(tmp_path / name)


def test_a_dataset_of_the_hub_is_streamed_with_its_types(monkeypatch):
    asked, features = [], Features({"text": Value("large_string")})

    def load(path, **options):
        asked.append((path, options))
        rows = [{"text": f"{n}"} for n in range(5)]
        return {"test": IterableDataset.from_generator(lambda: iter(rows), features=features)}

    monkeypatch.setattr("plaudit.data.reader.load_source", load)
    source = Source("someone/texts", "main", "test")
    assert source.schema() == pa.schema([("text", pa.large_string())])
    blocks = list(source.chunks(3, {0}))
    assert [(block.number, block.first, block.rows, block.share) for block in blocks] == [
        (1, 3, [{"text": "3"}, {"text": "4"}], None)
    ]
    assert asked[-1] == ("someone/texts", {"config": "main", "streaming": True})


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_a_quote_that_is_never_closed_swallows_no_rows_of_csv(tmp_path, end):
    (tmp_path / "in.csv").write_text(f'\ntext,id\n"Is it?",1\n"Is it,2\nYes.,3{end}')
    with pytest.raises(DataError, match="a quote is opened and never closed, before 'Is it,2"):
        rows_of(tmp_path / "in.csv")
    (tmp_path / "in.csv").write_text(f'\ntext,id\n"Is it?",1\n"Is it",2\nYes.,3{end}')
    assert [row["id"] for row in rows_of(tmp_path / "in.csv")] == ["1", "2", "3"]


def test_a_line_of_csv_with_too_many_fields_is_a_bad_row(tmp_path):
    (tmp_path / "in.csv").write_text("id,text\n1,Is it?\n2,Is it, or not?\n3,Yes.\n")
    one, bad, three = rows_of(tmp_path / "in.csv")
    assert (one["id"], three["id"]) == ("1", "3")
    assert bad.reason == "expected 2 fields, as the header has, got 3"


def test_a_line_of_json_that_is_no_object_or_has_a_key_twice_is_a_bad_row(tmp_path):
    (tmp_path / "in.jsonl").write_text('[1, 2]\n{"text": "Is it?", "text": "Yes."}\n')
    array, twice = rows_of(tmp_path / "in.jsonl")
    assert (array.reason, array.content) == ("line 1: expected a JSON object, got list [1, 2]", "[1, 2]")
    assert twice.reason == "line 2 is not valid JSON (it has the key 'text' twice)"
    assert twice.content == '{"text": "Is it?", "text": "Yes."}'


def test_a_compressed_file_with_a_broken_byte_is_said(tmp_path):
    whole = gzip.compress(b'{"text": "Yes."}')
    (tmp_path / "in.jsonl.gz").write_bytes(whole[:10] + bytes([6]) + whole[11:])  # a kind of block that there is not
    with pytest.raises(DataError, match="cannot read on in"):
        rows_of(tmp_path / "in.jsonl.gz")


def test_parquet_is_read_without_holding_a_row_group(tmp_path):
    draw = np.random.default_rng(0)
    pq.write_table(pa.table({"text": [draw.bytes(400).hex() for _ in range(40_000)]}), tmp_path / "in.parquet")
    pool = pa.default_memory_pool()
    size, before, most = (tmp_path / "in.parquet").stat().st_size, pool.bytes_allocated(), 0
    for chunk in Source(str(tmp_path / "in.parquet")).chunks(512):
        most = max(most, pool.bytes_allocated() - before)
        assert len(chunk.rows) in (512, 40_000 % 512)
    assert most < size / 4
