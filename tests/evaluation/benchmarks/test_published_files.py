"""Published files, as they lie on a disk."""

from pathlib import Path

import pytest
from benchmark_rows import put

from plaudit.errors import DataError
from plaudit.evaluation.benchmarks.published_files import files_of, is_hub_id, read_file


@pytest.mark.parametrize(
    ("data", "is_id"),
    [("allenai/reward-bench", True), ("data/rows.jsonl", False), ("./copy", False), ("/a/b", False), ("a/b/c", False)],
)
def test_a_hub_id_has_an_owner_and_a_name(data, is_id):
    assert is_hub_id(data) is is_id


def test_files_of_rows_are_found_below_a_folder(tmp_path):
    for name in ("b/rows.jsonl.gz", "a.parquet", "README.md", ".cache/old.json", "c.json"):
        put(tmp_path / name, [{"x": 1}])
    assert [file.relative_to(tmp_path) for file in files_of(tmp_path)] == [
        Path("a.parquet"), Path("b/rows.jsonl.gz"), Path("c.json"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.parquet"])
def test_rows_come_back_as_they_were_written(tmp_path, name):
    rows = [{"prompt": "é", "chosen": ["a"], "n": 1}, {"prompt": "b", "chosen": [], "n": 2}]
    put(tmp_path / name, rows)
    assert read_file(tmp_path / name) == rows


def test_a_broken_row_names_its_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"x": 1}\n{"x":\n')
    with pytest.raises(DataError, match=r"rows\.jsonl: line 2 .*download it again"):
        read_file(tmp_path / "rows.jsonl")
