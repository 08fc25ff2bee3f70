import logging

import datasets
import pytest
from chat_rows import battle, user
from datasets import Dataset, DatasetDict, IterableDatasetDict

from plaudit.data.dataset_conversion import convert
from plaudit.errors import ConfigError, DataError

TIED = [battle("model_a"), battle("tie"), battle("model_b"), battle("tie", a=(None,))]


def test_convert_drops_and_counts_ties_and_keeps_subset(caplog):
    dataset = Dataset.from_list([row | {"subset": str(i), "id": i} for i, row in enumerate(TIED)])
    with caplog.at_level(logging.INFO, logger="plaudit"):
        converted = convert(DatasetDict(train=dataset), "arena")
    assert converted["train"].column_names == ["subset", "chosen", "rejected"]
    assert converted["train"]["subset"][:] == ["0", "2"]
    assert "train: dropped 2 ties of 4 rows" in caplog.text


def test_convert_keeps_ties_when_asked():
    converted = convert(Dataset.from_list(TIED), "arena", keep_ties=True)
    assert converted["tie"][:] == [False, True, False, True]
    messages = datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
    assert converted.features == {"chosen": messages, "rejected": messages, "tie": datasets.Value("bool")}


def test_convert_streams(caplog):
    splits = IterableDatasetDict(train=Dataset.from_list(TIED).to_iterable_dataset())
    with caplog.at_level(logging.INFO, logger="plaudit"):
        converted = convert(splits, "arena")
    assert isinstance(converted, IterableDatasetDict)
    assert [row["chosen"][-1]["content"] for row in converted["train"]] == ["A", "B"]
    assert all(set(row) == {"chosen", "rejected"} for row in converted["train"])
    assert "dropped as they come" in caplog.text


def test_convert_gives_one_schema_from_mixed_rows():
    rows = [
        {"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": 0, "context": None},
        {"prompt": None, "response_1": "a", "response_2": "b", "preference_strength": 2, "context": [user("q")]},
    ]
    converted = convert(Dataset.from_list(rows), "helpsteer", keep_ties=True)
    assert converted["margin"][:] == [0.0, 2.0]
    assert [row["rejected"][0]["content"] for row in converted] == ["p", "q"]


def test_convert_names_the_row_and_the_format():
    good = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    bad = good | {"rejected": "\n\nHuman: a"}
    for dataset in (Dataset.from_list([good, bad]), Dataset.from_list([good, bad]).to_iterable_dataset()):
        with pytest.raises(DataError, match=r"row 1, read as 'hh'.*rejected"):
            list(convert(dataset, "hh"))
    with pytest.raises(DataError, match=r"row 0.*'arena'.*\"prompt\".*chosen, rejected"):
        convert(Dataset.from_list([good]), "arena")


def test_convert_refuses_unknown_names_and_empty_results():
    with pytest.raises(ConfigError, match=r"'ultrafeedbak'.*arena, helpsteer, hh, ranked.*mean 'ultrafeedback'"):
        convert(Dataset.from_list(TIED), "ultrafeedbak")
    with pytest.raises(DataError, match="all 1 rows are ties"):
        convert(Dataset.from_list([battle("tie")]), "arena")
    with pytest.raises(DataError, match="there are none"):
        convert(Dataset.from_list([battle("tie")]).select([]), "arena")
