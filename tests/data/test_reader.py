import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, Features, Value

from plaudit.data.loading import load_source
from plaudit.data.reader import Source
from plaudit.errors import ConfigError, DataError


def rows_of(path):
    return [row for chunk in Source(str(path)).chunks(2) for row in chunk.rows]


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
def test_chunks_have_the_rows_in_order_and_the_fraction_that_is_read(write, name):
    rows = [{"text": f"{n} " + "yes " * 2000} for n in range(40)]
    source = Source(write(name, rows))
    for done in ((), (0, 1, 3)):  # a chunk that is skipped is read too
        chunks = list(source.chunks(4, done))
        assert [(chunk.number, chunk.first) for chunk in chunks] == [(n, 4 * n) for n in range(10) if n not in done]
        assert all(chunk.rows == rows[chunk.first : chunk.first + 4] for chunk in chunks)
        shares = [chunk.fraction_read for chunk in chunks]
        assert shares == sorted(shares)
        assert shares[-1] == 1
        if name != "in.jsonl.gz":  # a small file, read at once
            assert len(set(shares)) > 3


@pytest.mark.parametrize("options", [{"config": "main"}, {"split": "test"}])
def test_a_file_has_no_configuration_and_no_splits(write, options):
    path = write("in.jsonl", [{"text": "Yes."}])
    with pytest.raises(ConfigError, match="in.jsonl is a file: it has no --dataset_config and no --split but 'train'"):
        Source(path, **options)


@pytest.mark.parametrize("name", ["gone.jsonl", "gone.csv", "gone.parquet"])
def test_a_file_that_does_not_exist_is_named(tmp_path, name):
    with pytest.raises(DataError, match=f"expected a file or folder at .*{name}"):
        rows_of(tmp_path / name)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "in.parquet").write_bytes(b"PAR1, and then no more")
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(b'{"text": "Yes."}\n' * 9)[:-3])
    for name in ("in.parquet", "in.jsonl.gz"):
        with pytest.raises(DataError, match=f"cannot read {tmp_path / name}: .+; check that it is whole"):
            rows_of(tmp_path / name)


def test_a_source_without_rows_is_an_error(tmp_path):
    (tmp_path / "in.csv").write_text("chosen,rejected\n")
    with pytest.raises(DataError, match=r"expected rows in .*in\.csv, but there are none"):
        rows_of(tmp_path / "in.csv")


def test_a_folder_is_streamed_with_its_types(tmp_path):
    features = Features({"text": Value("large_string")})
    DatasetDict(test=Dataset.from_list([{"text": f"{n}"} for n in range(5)], features=features)).save_to_disk(tmp_path)
    source = Source(str(tmp_path), split="test")
    assert source.schema() == pa.schema([("text", pa.large_string())])
    chunks = list(source.chunks(3, {0}))
    assert [(chunk.number, chunk.first, chunk.rows, chunk.fraction_read) for chunk in chunks] == [
        (1, 3, [{"text": "3"}, {"text": "4"}], None)
    ]


def test_a_dataset_with_several_configurations_is_read_in_the_one_that_is_named(tmp_path, write):
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("main", "other"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for name in ("main", "other"):
        write(f"{name}.jsonl", [{"text": name}])
    assert [chunk.rows for chunk in Source(str(tmp_path), "other").chunks(2)] == [[{"text": "other"}]]


def test_a_source_holds_itself_and_the_files_in_its_folder(tmp_path, write):
    path = write("data/in.jsonl", [{"text": "Yes."}])
    assert Source(path).holds(Path(path))
    assert Source(str(tmp_path / "data")).holds(tmp_path / "data" / "out.jsonl")
    assert not Source(path).holds(tmp_path / "data" / "out.jsonl")
    assert not Source("someone/texts").holds(Path(path))
