import csv
import gzip
from pathlib import Path

import pytest

from plaudit.data.file_formats import Unreadable, explain_errors, format_of, open_rows
from plaudit.errors import DataError


def rows_of(path):
    with explain_errors(path):
        return list(open_rows(path).rows)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jsonl", "json"), ("a.JSON", "json"), ("a.ndjson.gz", "json"), ("a.csv", "csv"), ("a.csv.gz", "csv"),
        ("a.parquet", "parquet"), ("a.parquet.gz", None), ("a.txt", None), ("jsonl", None),
    ],
)  # fmt: skip
def test_the_suffix_of_a_file_names_its_format(name, expected):
    assert format_of(Path(name)) == expected


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.json", "a.json.gz", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_the_values_of_a_file_do_not_change(write, name):
    rows = [{"id": "007", "day": "2024-01-01", "text": 'Yes,\n"so".'}, {"id": "1e5", "day": None, "text": "Ünï ☃"}]
    path = Path(write(name, rows))
    assert rows_of(path) == rows
    assert open_rows(path).columns == ([] if "json" in name else ["id", "day", "text"])


# JSON


def test_an_empty_line_is_no_row_and_counts_as_a_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"text": "Yes."}\n \r\n{\n')
    good, bad = rows_of(tmp_path / "a.jsonl")
    assert good == {"text": "Yes."}
    assert bad.reason.startswith("line 4 is not valid JSON")
    assert bad.content == "{"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1, "a": 2}', "line 2 is not valid JSON (it has the key 'a' twice)"),
        (b"3", "line 2: expected a JSON object, got int 3"),
        (b'{"a": "\xff"}', "line 2 is not valid JSON ('utf-8'"),
    ],
)
def test_a_line_that_is_no_row_is_unreadable_with_its_reason(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n' + line + b"\n")
    first, second = rows_of(tmp_path / "a.jsonl")
    assert first == {"a": 1}
    assert isinstance(second, Unreadable)
    assert second.reason.startswith(reason)


def test_an_item_of_a_list_that_is_no_row_is_unreadable(tmp_path):
    (tmp_path / "a.json").write_text('\n[{"a": 1},\n "b"]')
    assert rows_of(tmp_path / "a.json") == [
        {"a": 1}, Unreadable('item 1: expected a JSON object, got str "b"', '"b"')
    ]  # fmt: skip


# CSV


def test_csv_of_a_spreadsheet_keeps_its_columns_and_its_cells(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbftext,n\r\n"Is it?\r\nYes.",1\r\nNo,2\r\n\r\n')
    assert rows_of(tmp_path / "a.csv") == [{"text": "Is it?\r\nYes.", "n": "1"}, {"text": "No", "n": "2"}]


def test_a_row_of_csv_with_another_number_of_cells_is_unreadable(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n1,2,3\n1\n")
    good, *bad = rows_of(tmp_path / "a.csv")
    assert good == {"a": "1", "b": "2"}
    assert bad == [
        Unreadable(f"expected 2 fields, as the header has, got {n}", text) for n, text in ((3, "1,2,3"), (1, "1"))
    ]


def test_a_cell_of_csv_may_be_as_long_as_a_conversation(write):
    limit = csv.field_size_limit(1 << 17)  # the default of Python
    try:
        rows = [{"text": "yes " * 50_000}]
        assert rows_of(Path(write("a.csv", rows))) == rows
    finally:
        csv.field_size_limit(limit)


def test_a_column_of_csv_that_comes_twice_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("text,n,text\nYes.,1,No.\n")
    with pytest.raises(DataError, match=f"^{tmp_path}/a.csv: expected each column once, got text, n, text"):
        rows_of(tmp_path / "a.csv")


# broken files


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl.gz", b'{"text": "Yes."}\n'),
        ("a.jsonl.gz", gzip.compress(b'{"text": "Yes."}\n')[:-3]),
        ("a.json", b"[{]"),
        ("a.csv", b'text,n\n"Yes.'),
        ("a.csv", b"text\nte\xffxt\n"),
        ("a.parquet", b"PAR1, and then no more"),
    ],
    ids=["not gzipped", "cut short", "a broken list", "an open quote", "no UTF-8", "no footer"],
)
def test_a_broken_file_is_named(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=f"cannot read {tmp_path / name}: .+; check that it is whole"):
        rows_of(tmp_path / name)
