import csv
import gzip
import io
import json
import os
from datetime import date, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plaudit.data.reader import Source
from plaudit.errors import ConfigError, DataError
from plaudit.scoring.output_formats import check_output, join_chunks, write_chunk, write_rejected


def join(folder, chunks, name, schema=None):
    """A file of these chunks of rows."""
    output, parts = folder / name, []
    for number, rows in enumerate(chunks):
        parts.append(folder / f"{number}.part")
        with open(parts[-1], "wb") as file:
            write_chunk(rows, file, output, schema)
    with open(output, "wb") as file:
        join_chunks(parts, file, output)
    return output


def read(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".csv":
        name, *lines = path.read_text().splitlines()
        return [{name: int(line)} for line in lines]
    return [json.loads(line) for line in (gzip.open if path.suffix == ".gz" else open)(path, "rt")]


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.csv", "out.parquet"])
@pytest.mark.parametrize("chunks", [1, 16, 17, 40])
def test_any_number_of_chunks_makes_one_file_of_each_row_once(tmp_path, name, chunks):
    rows = [{"n": n} for n in range(3 * chunks)]
    output = join(tmp_path, [rows[start : start + 3] for start in range(0, len(rows), 3)], name)
    assert read(output) == rows
    if name == "out.parquet":
        assert pq.ParquetFile(output).num_row_groups == -(-chunks // 16)


def test_a_compressed_file_holds_no_time_and_no_name(tmp_path, monkeypatch):
    made = []
    for second in (1, 2):
        monkeypatch.setattr("time.time", lambda second=second: second)
        made.append(join(tmp_path, [[{"n": 1}]], f"{second}.jsonl.gz").read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize(
    "rows", [[{"n": 1}, {"n": "many"}], [{"n": "half \ud800"}], [{"n": 2**70}]], ids=["mixed", "Unicode", "large"]
)
def test_what_has_no_form_in_parquet_is_said_with_what_has(tmp_path, rows):
    with pytest.raises(DataError, match="the rows have no form in Parquet .*; write .jsonl, which holds anything"):
        join(tmp_path, [rows], "out.parquet")
    assert read(join(tmp_path, [rows], "out.jsonl")) == rows


def test_types_that_have_no_common_type_in_parquet_are_said(tmp_path):
    for one, other in ((2**62 + 1, 0.5), ("many", 1), ({"a": 1}, [1])):
        with pytest.raises(DataError, match="no common form in Parquet .*; write .jsonl"):
            join(tmp_path, [[{"n": one}], [{"n": other}]], "out.parquet")


def test_the_types_of_the_source_are_kept_where_it_says_them(tmp_path):
    schema = pa.schema([("n", pa.int8()), ("gone", pa.string())])
    output = join(tmp_path, [[{"n": 1, "more": 1}], [{"n": None, "more": 2}]], "out.parquet", schema)
    assert pq.read_schema(output).equals(pa.schema([("n", pa.int8()), ("more", pa.int64())]))


def test_days_and_times_are_written_as_iso_says_in_json(tmp_path):
    rows = [{"day": date(2024, 5, 6), "at": datetime(2024, 5, 6, 7), "half": "\ud800"}]
    for kept in (rows, [{name: rows[0][name] for name in ("day", "at")}]):
        (row,) = read(join(tmp_path, [kept], "out.jsonl"))
        assert (row["day"], row["at"]) == ("2024-05-06", "2024-05-06T07:00:00")


def test_rows_with_other_columns_go_together_in_parquet_and_csv(tmp_path):
    chunks = [[{"n": 1, "at": {"a": 1}}], [{"n": 0.5, "at": {"b": "x"}, "z": "z"}]]
    one, two = pq.read_table(join(tmp_path, chunks, "out.parquet")).to_pylist()
    assert (one["n"], one["at"], one["z"]) == (1.0, {"a": 1, "b": None}, None)
    assert (two["n"], two["at"], two["z"]) == (0.5, {"a": None, "b": "x"}, "z")
    table = csv.DictReader(join(tmp_path, chunks, "out.csv").read_text().splitlines())
    assert list(table) == [{"n": "1", "at": '{"a": 1}', "z": ""}, {"n": "0.5", "at": '{"b": "x"}', "z": "z"}]


def test_a_cell_with_a_lone_carriage_return_stays_one_cell_of_csv(tmp_path):
    rows = [{"text": "Is it?\rYes.", "id": "1"}, {"text": "Is it?\r\nNo.", "id": "2"}]
    content = join(tmp_path, [rows], "out.csv").read_bytes()
    assert list(csv.DictReader(io.StringIO(content.decode(), newline=""))) == rows
    assert b"\n1" not in content
    assert content.count(b"\r\n") == 1


def test_rejected_rows_show_the_values_that_json_has_not():
    file = io.BytesIO()
    write_rejected([{"row": 1, "content": {"raw": b"a", "day": date(2024, 5, 6), "text": "half \ud800"}}], file)
    content = {"raw": "b'a'", "day": "2024-05-06", "text": "half \ud800"}
    assert json.loads(file.getvalue()) == {"row": 1, "content": content}


def test_a_value_that_json_has_not_is_an_error_in_an_output(tmp_path):
    with pytest.raises(DataError, match="a value of type bytes has no form in JSON; write .parquet, or drop"):
        join(tmp_path, [[{"raw": b"a"}]], "out.jsonl")


def test_a_place_where_nothing_can_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigError, match="'.*folder.csv' is a folder. Name a file"):
        check_output(tmp_path / "folder.csv")
    with pytest.raises(ConfigError, match="expected a name that ends in .jsonl, .*, got 'out.txt'"):
        check_output(tmp_path / "out.txt")
    with pytest.raises(ConfigError, match="there is no folder '.*missing'. Make it first"):
        check_output(tmp_path / "missing" / "out.csv")
    check_output(tmp_path / "OUT.JSONL")
    monkeypatch.setattr("os.access", lambda path, mode: not (path == tmp_path and mode == os.W_OK))
    with pytest.raises(ConfigError, match=f"the folder '{tmp_path}' is not writable"):
        check_output(tmp_path / "out.jsonl")


# From a source to an output

TYPED = [
    {"id": "007", "day": "2024-01-01", "text": 'Is it? Yes,\n"the sky".'},
    {"id": "1e5", "day": "2024-01-02", "text": "Is the fox blue? Ünïcode ☃."},
    {"id": "", "day": "", "text": "Is it? No."},
]


def write_source(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="", encoding="utf-8") as file:
        if path.name.startswith("in.csv"):
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("output", ["out.jsonl", "out.jsonl.gz", "out.csv", "out.parquet"])
@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.csv", "in.csv.gz", "in.parquet"])
def test_from_each_format_to_each_format_no_value_changes(tmp_path, name, output):
    write_source(tmp_path / name, TYPED)
    source = Source(str(tmp_path / name))
    written = join(tmp_path, [chunk.rows for chunk in source.chunks(2)], output, source.schema())
    again = [row for chunk in Source(str(written)).chunks(9) for row in chunk.rows]
    if ".csv" in name + output:  # an empty cell is no value
        assert again == [{name: value or None for name, value in row.items()} for row in TYPED]
    else:
        assert again == TYPED


def test_from_parquet_to_parquet_types_are_kept(tmp_path):
    schema = pa.schema(
        [
            ("text", pa.large_string()), ("n", pa.int16()), ("when", pa.timestamp("ms")), ("raw", pa.binary()),
            ("tags", pa.list_(pa.string())),
        ]
    )  # fmt: skip
    row = {"text": "Is it? Yes.", "n": 3, "when": datetime(2024, 5, 6, 7), "raw": b"\xff", "tags": []}
    pq.write_table(pa.Table.from_pylist([row, row], schema=schema), tmp_path / "in.parquet")
    source = Source(str(tmp_path / "in.parquet"))
    chunks = [[row | {"reward": 0.5} for row in chunk.rows] for chunk in source.chunks(1)]
    table = pq.read_table(join(tmp_path, chunks, "out.parquet", source.schema()))
    assert table.schema.remove(table.schema.get_field_index("reward")).equals(schema)
    assert table.to_pylist() == [row | {"reward": 0.5}] * 2
