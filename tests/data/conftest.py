import gzip
import json

import datasets
import huggingface_hub
import pytest
from datasets import Dataset

from plaudit.data.tokenize import TokenizationRules, tokenize_dataset

DERIVED = {"row_number", "prompt_key", "num_tokens", "sequence_lengths", "comparisons", "ties"}


@pytest.fixture(autouse=True)
def offline_with_a_private_cache(tmp_path, monkeypatch):
    """No network, and a cache of `datasets` that no other test shares."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.fixture(scope="session")
def shared_tokenizer(new_tokenizer):
    """A tokenizer for tests that do not change it."""
    return new_tokenizer()


@pytest.fixture(params=["dataset", "stream", "stream of unknown columns"])
def kind(request):
    return request.param


@pytest.fixture
def tokenize(tokenizer):
    """A function that tokenises rows or a dataset, and returns the rows without derived columns, and the report."""

    def run(rows, rules=TokenizationRules(max_length=None), kind="dataset", *, tokenizer=tokenizer, **options):  # noqa: B008
        dataset = Dataset.from_list(rows) if isinstance(rows, list) else rows
        if kind != "dataset":
            dataset = dataset.to_iterable_dataset()
        if kind == "stream of unknown columns":
            dataset = dataset.map(lambda row: row)
            assert dataset.column_names is None
        tokenised, report = tokenize_dataset(dataset, tokenizer, rules, **{"split": "train"} | options)
        return [{name: row[name] for name in row if name not in DERIVED} for row in tokenised], report

    return run


@pytest.fixture
def write(tmp_path):
    """A function that writes rows to a file of the temporary folder, in the format of its suffix."""

    def write_rows(name, rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            Dataset.from_list(rows).to_parquet(path)
        else:
            with gzip.open(path, "wt") if name.endswith(".gz") else path.open("w") as file:
                file.write(_as_text(name, rows))
        return str(path)

    return write_rows


def _as_text(name, rows):
    if ".csv" in name:
        return Dataset.from_list(rows).to_pandas().to_csv(index=False)
    if ".jsonl" in name:
        return "".join(json.dumps(row) + "\n" for row in rows)
    return json.dumps(rows, indent=1)
