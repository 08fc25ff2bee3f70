import gzip
import json
import os
from datetime import date, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plaudit.errors import ConfigError, DataError
from plaudit.scoring.output_formats import check_output, join_parts, write_part


def join(folder, blocks, name, schema=None):
    """A file of these blocks of rows."""
    output, parts = folder / name, []
    for number, rows in enumerate(blocks):
        parts.append(folder / f"{number}.part")
        write_part(rows, parts[-1], output, schema)
    join_parts(parts, output, output)
    return output


def read(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".csv":
        name, *lines = path.read_text().splitlines()
        return [{name: int(line)} for line in lines]
    return [json.loads(line) for line in (gzip.open if path.suffix == ".gz" else open)(path, "rt")]


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.csv", "out.parquet"])
@pytest.mark.parametrize("blocks", [1, 16, 17, 40])
def test_any_number_of_parts_makes_one_file_of_each_row_once(tmp_path, name, blocks):
    rows = [{"n": n} for n in range(3 * blocks)]
    output = join(tmp_path, [rows[start : start + 3] for start in range(0, len(rows), 3)], name)
    assert read(output) == rows
    if name == "out.parquet":
        assert pq.ParquetFile(output).num_row_groups == -(-blocks // 16)


def test_a_packed_file_holds_no_time_and_no_name(tmp_path, monkeypatch):
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


def test_parts_that_do_not_go_together_in_parquet_are_said(tmp_path):
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


def test_what_is_on_the_disk_is_all_of_it(tmp_path, monkeypatch):
    synced, plain = [], os.fsync

    def noted(file):
        synced.append(os.fstat(file).st_size)
        plain(file)

    monkeypatch.setattr("os.fsync", noted)
    output = join(tmp_path, [[{"text": "Yes."}]], "out.jsonl")
    assert synced == [(tmp_path / "0.part").stat().st_size, output.stat().st_size]
    assert min(synced) > 0


def test_a_place_where_nothing_can_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigError, match="'.*folder.csv' is a folder. Name a file"):
        check_output(tmp_path / "folder.csv")
    check_output(tmp_path / "OUT.JSONL")
    monkeypatch.setattr("os.access", lambda path, mode: not (path == tmp_path and mode == os.W_OK))
    with pytest.raises(ConfigError, match=f"nobody lets you write to '{tmp_path}'"):
        check_output(tmp_path / "out.jsonl")
