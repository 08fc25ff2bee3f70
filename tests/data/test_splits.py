import logging

import pytest
from chat_rows import reply, user
from datasets import Dataset

from plaudit.data.script_arguments import ScriptArguments
from plaudit.data.splits import load_splits, split_by_prompt
from plaudit.errors import ConfigError, DataError

ROWS = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": "None" if i else 'bad, "so"\nto say'} for i in range(6)]


# load_splits


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


# split_by_prompt


def explicit(prompt, i):
    return {"prompt": prompt, "chosen": f"yes {i}", "rejected": f"no {i}"}


def transcripts(prompt, i):
    return {side: f"\n\nHuman: {prompt}\n\nAssistant: I {side} {i}" for side in ("chosen", "rejected")}


def chats(prompt, i):
    return {side: [user(prompt), reply(f"{side} {i}" if i else "equal")] for side in ("chosen", "rejected")}


def texts(prompt, i):
    return {side: f"Question {prompt}\nThe {side} {i}" for side in ("chosen", "rejected")}


def one_liners(prompt, i):
    return {side: f"What is {prompt}? {reply_} {i}." for side, reply_ in (("chosen", "It is"), ("rejected", "It was"))}


def group(prompt, i):
    return {"prompt": [user(prompt)], "completions": [f"a{i}", "b"], "ranks": [0, 1]}


def whole_group(prompt, i):
    return {"completions": [[user(prompt), reply(f"{name} {i}")] for name in "abc"], "scores": [3, 2, 1]}


@pytest.mark.parametrize("make", [explicit, transcripts, chats, texts, one_liners, group, whole_group])
def test_no_prompt_is_on_both_sides(make):
    rows = [make(f"prompt {i % 10}", i // 10) | {"true_prompt": i % 10} for i in range(40)]
    dataset = Dataset.from_list(rows)
    train, held = split_by_prompt(dataset, 0.3, seed=3)
    assert (len(train), len(held)) == (28, 12)
    assert not set(train["true_prompt"]) & set(held["true_prompt"])
    assert sorted(map(str, [*train, *held])) == sorted(map(str, dataset))
    again = split_by_prompt(dataset, 0.3, seed=3)
    assert [list(part) for part in again] == [list(train), list(held)]
    others = [split_by_prompt(dataset, 0.3, seed=seed)[1]["true_prompt"][:] for seed in range(5)]
    assert any(other != held["true_prompt"][:] for other in others)


def test_the_fraction_holds_with_groups_of_many_sizes():
    dataset = Dataset.from_list([explicit(f"p{i}", j) for i in range(30) for j in range(1 + i % 7)])
    for seed in range(5):
        assert len(split_by_prompt(dataset, 0.2, seed)[1]) == pytest.approx(0.2 * len(dataset), abs=2)


def test_a_held_out_side_is_never_empty():
    dataset = Dataset.from_list(
        [explicit("a", 0), explicit("a", 1), explicit("b", 0), explicit("b", 1), explicit("b", 2)]
    )
    train, held = split_by_prompt(dataset, 0.01, seed=0)
    assert (set(train["prompt"]), set(held["prompt"])) == ({"b"}, {"a"})


def test_split_by_prompt_refuses_what_it_cannot_do():
    dataset = Dataset.from_list([explicit("same", i) for i in range(4)])
    for fraction in (0, 1, -0.5, 1.5):
        with pytest.raises(ConfigError, match=f"eval_fraction above 0 and below 1, got {fraction}"):
            split_by_prompt(dataset, fraction, seed=0)
    with pytest.raises(DataError, match="1 distinct prompts"):
        split_by_prompt(dataset, 0.5, seed=0)
    with pytest.raises(DataError, match=r"'prompt'.*they have text"):
        split_by_prompt(Dataset.from_list([{"text": "a"}, {"text": "b"}]), 0.5, seed=0)
    with pytest.raises(ConfigError, match=r"stream.*dataset_streaming off.*dataset_test_split"):
        split_by_prompt(dataset.to_iterable_dataset(), 0.5, seed=0)
