import logging

import pytest
from transformers import HfArgumentParser

from plaudit.data.script_arguments import ScriptArguments, load_splits
from plaudit.errors import ConfigError, DataError

ROWS = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": "None" if i else 'bad, "so"\nto say'} for i in range(6)]


def user(text):
    return {"role": "user", "content": text}


def reply(text):
    return {"role": "assistant", "content": text}


def test_splits_by_default_names(tmp_path, write, caplog):
    write("d/train.jsonl", ROWS[:4])
    args = ScriptArguments(dataset_name=str(tmp_path / "d"))
    with caplog.at_level(logging.INFO, logger="plaudit"):
        train, test = load_splits(args, seed=0)
    assert (list(train), test) == (ROWS[:4], None)
    assert "There is no 'test' split, so nothing will be evaluated" in caplog.text
    write("d/test.jsonl", ROWS[4:])
    assert list(load_splits(args, seed=0)[1]) == ROWS[4:]
    streamed = ScriptArguments(dataset_name=str(tmp_path / "d"), dataset_streaming=True)
    assert [list(part) for part in load_splits(streamed, seed=0)] == [ROWS[:4], ROWS[4:]]


def test_splits_by_name_must_be_there(tmp_path, write):
    path = write("d/validation.jsonl", ROWS)
    folder = str(tmp_path / "d")
    with pytest.raises(DataError, match=r"'train'.*has the splits validation"):
        load_splits(ScriptArguments(dataset_name=folder), seed=0)
    with pytest.raises(DataError, match=r"'dev'.*has the splits train"):
        load_splits(ScriptArguments(dataset_name=path, dataset_test_split="dev"), seed=0)
    args = ScriptArguments(
        dataset_name=folder, dataset_train_split="validation[:4]", dataset_test_split="validation[4:]"
    )
    assert [list(part) for part in load_splits(args, seed=0)] == [ROWS[:4], ROWS[4:]]


def test_splits_are_converted(tmp_path, write):
    row = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    write("d/train.jsonl", [row])
    write("d/test.jsonl", [row])
    for part in load_splits(ScriptArguments(dataset_name=str(tmp_path / "d"), dataset_format="hh"), seed=0):
        assert list(part) == [{"chosen": [user("a"), reply("b")], "rejected": [user("a"), reply("c")]}]


def test_eval_fraction_replaces_the_default_test_split(tmp_path, write):
    write("d/train.jsonl", ROWS)
    write("d/test.jsonl", [{"prompt": "t", "chosen": "a", "rejected": "b"}])
    train, test = load_splits(ScriptArguments(dataset_name=str(tmp_path / "d"), eval_fraction=1 / 3), seed=0)
    assert (len(train), len(test)) == (4, 2)
    assert sorted([*train["prompt"], *test["prompt"]]) == [row["prompt"] for row in ROWS]


def test_splits_refuse_contradictions():
    with pytest.raises(ConfigError, match=r"eval_fraction=0\.1 and dataset_test_split='dev'"):
        load_splits(ScriptArguments(dataset_name="x", eval_fraction=0.1, dataset_test_split="dev"), seed=0)
    with pytest.raises(ConfigError, match=r"dataset_name.*datasets"):
        load_splits(ScriptArguments(), seed=0)


def test_script_arguments_parse_from_flags_and_mappings():
    parser = HfArgumentParser(ScriptArguments)
    (args,) = parser.parse_args_into_dataclasses(
        ["--dataset_name", "d", "--eval_fraction", "0.1", "--dataset_streaming"]
    )
    assert args == ScriptArguments(dataset_name="d", eval_fraction=0.1, dataset_streaming=True)
    (args,) = parser.parse_dict({"datasets": [{"path": "a", "weight": 1}], "dataset_format": "hh"})
    assert args == ScriptArguments(datasets=[{"path": "a", "weight": 1}], dataset_format="hh")
    assert "--dataset_test_split" in parser.format_help()


def test_script_arguments_keep_the_names_and_defaults_of_trl():
    args = vars(ScriptArguments())
    assert {name: args[name] for name in list(args)[:6]} == {
        "dataset_name": None,
        "dataset_config": None,
        "dataset_train_split": "train",
        "dataset_test_split": "test",
        "dataset_streaming": False,
        "ignore_bias_buffers": False,
    }
