import gzip
import json
import logging

import datasets
import huggingface_hub
import pytest
from datasets import Dataset, DatasetDict, IterableDatasetDict
from transformers import HfArgumentParser

from plaudit.data.script_arguments import ScriptArguments, load_source, load_splits, split_by_prompt
from plaudit.errors import ConfigError, DataError

ROWS = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": "None" if i else 'bad, "so"\nto say'} for i in range(6)]


@pytest.fixture(autouse=True)
def _offline_with_a_private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def write(path, rows, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset, name = Dataset.from_list(rows), path.name
    if name.endswith(".parquet"):
        dataset.to_parquet(path)
        return str(path)
    if ".csv" in name:
        text = dataset.to_pandas().to_csv(index=False)
    else:
        text = json.dumps(rows, indent=1) if ".json" in name and ".jsonl" not in name else lines(rows)
    with gzip.open(path, "wt") if name.endswith(".gz") else path.open("w") as file:
        file.write(text)
    return str(path)


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def user(text):
    return {"role": "user", "content": text}


def reply(text):
    return {"role": "assistant", "content": text}


# load_source


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.parquet", "a.csv", "a.csv.gz"])
@pytest.mark.parametrize("streaming", [False, True])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name, streaming):
    splits = load_source(write(tmp_path / name, ROWS), streaming=streaming)
    assert isinstance(splits, IterableDatasetDict if streaming else DatasetDict)
    assert {split: list(part) for split, part in splits.items()} == {"train": ROWS}


def test_a_folder_gives_its_splits(tmp_path, caplog):
    write(tmp_path / "d" / "train-00000-of-00002.jsonl", ROWS[:2])
    write(tmp_path / "d" / "train-00001-of-00002.jsonl", ROWS[2:4])
    write(tmp_path / "d" / "test" / "data.jsonl.gz", ROWS[4:])
    write(tmp_path / "d" / "notes.jsonl", [{"note": "x"}])
    write(tmp_path / "d" / ".git" / "train.jsonl", [{"note": "x"}])
    splits = load_source(str(tmp_path / "d"))
    assert {split: list(part) for split, part in splits.items()} == {"train": ROWS[:4], "test": ROWS[4:]}
    assert "notes.jsonl" in caplog.text


def test_a_folder_without_split_names_is_all_train(tmp_path):
    write(tmp_path / "d" / "a.parquet", ROWS[:3])
    write(tmp_path / "d" / "b.parquet", ROWS[3:])
    assert list(load_source(str(tmp_path / "d"))["train"]) == ROWS


def test_a_saved_dataset_or_dictionary_of_them(tmp_path):
    dataset = Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "one")
    DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(tmp_path / "two")
    assert list(load_source(str(tmp_path / "one"))["train"]) == ROWS
    assert list(load_source(str(tmp_path / "two"))["test"]) == ROWS[:1]
    assert list(load_source(str(tmp_path / "two"), streaming=True)["train"]) == ROWS


def test_optional_fields_may_come_late_and_numbers_may_turn_fractional(tmp_path):
    plain = [{"chosen": "x" * 2_000, "rejected": "b", "margin": 1} for _ in range(6_000)]  # more than one 10 MB block
    path = write(tmp_path / "a.jsonl", [*plain, {"chosen": "a", "rejected": "b", "margin": 1.5, "subset": "s"}])
    train = load_source(path)["train"]
    assert (train[0]["margin"], train[0]["subset"], train[-1]["margin"], train[-1]["subset"]) == (1.0, None, 1.5, "s")


def test_one_split_or_a_slice_of_it(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    assert list(load_source(path, split="train")) == ["train"]
    assert load_source(path, split="train[:50%]")["train[:50%]"]["prompt"][:] == ["p0", "p1", "p2"]
    assert load_source(path, split="train[:1]+train[-1:]")["train[:1]+train[-1:]"]["prompt"][:] == ["p0", "p5"]
    with pytest.raises(DataError, match=r"'test'.*has the splits train"):
        load_source(path, split="test")
    with pytest.raises(DataError, match=r"'train\[oops\]'.*has the splits train"):
        load_source(path, split="train[oops]")
    with pytest.raises(ConfigError, match=r"stream cannot be sliced.*dataset_streaming"):
        load_source(path, split="train[:1]", streaming=True)


@pytest.mark.parametrize("path", ["nowhere.jsonl", "data/nowhere.csv.gz", "/no/such/folder", "./data", "a/b/c"])
def test_a_path_without_a_file_is_not_looked_up_on_the_hub(path):
    with pytest.raises(DataError, match="expected a file or folder at") as error:
        load_source(path)
    assert repr(path) in str(error.value)
    assert "hub" not in str(error.value)


@pytest.mark.parametrize("name", ["plaudit-tests/no-such-dataset", "no_such_dataset"])
def test_an_unreachable_hub_id_is_one_clear_error(name):
    with pytest.raises(
        DataError, match=r"cannot load the dataset .*file, a folder or a hub id.*HF_HUB_OFFLINE"
    ) as error:
        load_source(name)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.jsonl", lines(ROWS[:2]) + '{"prompt": "x", "cho\n' + lines(ROWS[2:]), "line 3"),
        ("a.jsonl.gz", lines(ROWS[:4]) + "\n{'prompt': 1}\n", "line 6"),
        ("a.json", '[\n {"prompt": "a"},\n {"prompt" "b"}\n]\n', "line 3"),
    ],
)
def test_a_broken_json_line_is_named(tmp_path, name, text, line):
    path = tmp_path / name
    with gzip.open(path, "wt") if name.endswith(".gz") else path.open("w") as file:
        file.write(text)
    with pytest.raises(DataError, match=line) as error:
        load_source(str(path))
    assert str(path) in str(error.value)
    assert "not valid JSON" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.jsonl", b"", "the file is empty"),
        ("a.jsonl", b"\n \n", "the file is empty"),
        ("a.parquet", b"", "the file is empty"),
        ("a.json", b"[]", "a.json"),
        ("a.csv", b"chosen,rejected\n", "at least one row"),
        ("a.jsonl.gz", b"no gzip", "check that it is whole"),
        ("a.parquet", b"no parquet", "cannot read"),
        ("a.xlsx", b"x", "cannot tell what"),
    ],
)
def test_files_which_cannot_be_read(tmp_path, name, content, part):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=part) as error:
        load_source(str(tmp_path / name))
    assert name in str(error.value)


def test_folders_which_cannot_be_read(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"\.jsonl.*save_to_disk"):
        load_source(str(tmp_path / "empty"))
    write(tmp_path / "mixed" / "a.jsonl", ROWS)
    write(tmp_path / "mixed" / "b.parquet", ROWS)
    with pytest.raises(DataError, match=r"one kind.*json, parquet"):
        load_source(str(tmp_path / "mixed"))
    write(tmp_path / "uneven" / "a.jsonl", [{"chosen": "a"}])
    write(tmp_path / "uneven" / "b.jsonl", [{"chosen": "a", "other": 1}])
    with pytest.raises(DataError, match=r"uneven/a\.jsonl.*same columns"):
        load_source(str(tmp_path / "uneven"))
    with pytest.raises(ConfigError, match="no configuration 'x'"):
        load_source(str(tmp_path / "mixed" / "a.jsonl"), config="x")


# load_splits


def test_splits_by_default_names(tmp_path, caplog):
    write(tmp_path / "d" / "train.jsonl", ROWS[:4])
    args = ScriptArguments(dataset_name=str(tmp_path / "d"))
    with caplog.at_level(logging.INFO, logger="plaudit"):
        train, test = load_splits(args, seed=0)
    assert (list(train), test) == (ROWS[:4], None)
    assert "There is no 'test' split, so nothing will be evaluated" in caplog.text
    write(tmp_path / "d" / "test.jsonl", ROWS[4:])
    assert list(load_splits(args, seed=0)[1]) == ROWS[4:]
    streamed = ScriptArguments(dataset_name=str(tmp_path / "d"), dataset_streaming=True)
    assert [list(part) for part in load_splits(streamed, seed=0)] == [ROWS[:4], ROWS[4:]]


def test_splits_by_name_must_be_there(tmp_path):
    path = write(tmp_path / "d" / "validation.jsonl", ROWS)
    folder = str(tmp_path / "d")
    with pytest.raises(DataError, match=r"'train'.*has the splits validation"):
        load_splits(ScriptArguments(dataset_name=folder), seed=0)
    with pytest.raises(DataError, match=r"'dev'.*has the splits train"):
        load_splits(ScriptArguments(dataset_name=path, dataset_test_split="dev"), seed=0)
    args = ScriptArguments(
        dataset_name=folder, dataset_train_split="validation[:4]", dataset_test_split="validation[4:]"
    )
    assert [list(part) for part in load_splits(args, seed=0)] == [ROWS[:4], ROWS[4:]]


def test_splits_are_converted(tmp_path):
    row = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    write(tmp_path / "d" / "train.jsonl", [row])
    write(tmp_path / "d" / "test.jsonl", [row])
    for part in load_splits(ScriptArguments(dataset_name=str(tmp_path / "d"), dataset_format="hh"), seed=0):
        assert list(part) == [{"chosen": [user("a"), reply("b")], "rejected": [user("a"), reply("c")]}]


def test_eval_fraction_replaces_the_default_test_split(tmp_path):
    write(tmp_path / "d" / "train.jsonl", ROWS)
    write(tmp_path / "d" / "test.jsonl", [{"prompt": "t", "chosen": "a", "rejected": "b"}])
    train, test = load_splits(ScriptArguments(dataset_name=str(tmp_path / "d"), eval_fraction=1 / 3), seed=0)
    assert (len(train), len(test)) == (4, 2)
    assert sorted([*train["prompt"], *test["prompt"]]) == [row["prompt"] for row in ROWS]


def test_splits_refuse_contradictions():
    with pytest.raises(ConfigError, match=r"eval_fraction=0\.1 and dataset_test_split='dev'"):
        load_splits(ScriptArguments(dataset_name="x", eval_fraction=0.1, dataset_test_split="dev"), seed=0)
    with pytest.raises(ConfigError, match=r"dataset_name.*datasets"):
        load_splits(ScriptArguments(), seed=0)


# the mixture


def mixture(tmp_path, sizes, **keys):
    entries = []
    for name, size in sizes.items():
        rows = [{"prompt": f"{name}{i}", "chosen": "a", "rejected": "b"} for i in range(size)]
        entries.append({"path": write(tmp_path / f"{name}.jsonl", rows)} | {k: v[name] for k, v in keys.items()})
    return entries


def origins(dataset):
    return {name: sum(prompt[0] == name for prompt in dataset["prompt"]) for name in "xy"}


@pytest.mark.parametrize("key", ["weight", "fraction"])
def test_a_mixture_holds_its_shares_without_oversampling(tmp_path, key):
    entries = mixture(tmp_path, {"x": 100, "y": 40}, **{key: {"x": 3, "y": 2}})
    train, test = load_splits(ScriptArguments(datasets=entries), seed=1)
    assert test is None
    assert origins(train) == {"x": 60, "y": 40}
    drawn = [prompt for prompt in train["prompt"] if prompt[0] == "x"]
    assert len(set(drawn)) == 60
    assert drawn != [f"x{i}" for i in range(60)]  # drawn, not the head of the file
    assert load_splits(ScriptArguments(datasets=entries), seed=1)[0]["prompt"][:] == train["prompt"][:]
    assert load_splits(ScriptArguments(datasets=entries), seed=2)[0]["prompt"][:] != train["prompt"][:]


def test_a_mixture_without_weights_is_all_rows_and_takes_eval_fraction(tmp_path):
    entries = mixture(tmp_path, {"x": 5, "y": 15}, split={"x": "train[:3]", "y": "train"})
    assert origins(load_splits(ScriptArguments(datasets=entries), seed=0)[0]) == {"x": 3, "y": 15}
    train, test = load_splits(ScriptArguments(datasets=entries, eval_fraction=0.5), seed=0)
    assert (len(train), len(test)) == (9, 9)


def test_a_mixture_joins_layouts_and_optional_columns(tmp_path):
    transcript = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    scored = {"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": 2}
    native = {"prompt": [user("n")], "chosen": [reply("a")], "rejected": [reply("b")], "id": 1}
    entries = [
        {"path": write(tmp_path / "hh.jsonl", [transcript]), "format": "hh"},
        {"path": write(tmp_path / "scored.jsonl", [scored]), "format": "helpsteer"},
        {"path": write(tmp_path / "native.jsonl", [native]), "columns": ["prompt", "chosen", "rejected"]},
    ]
    train, _ = load_splits(ScriptArguments(datasets=entries), seed=0)
    assert train.column_names == ["chosen", "rejected", "margin", "prompt"]
    assert train["margin"][:] == [None, 2.0, None]
    assert train["prompt"][:] == [None, None, [user("n")]]
    assert [chosen[-1]["content"] for chosen in train["chosen"]] == ["b", "b", "a"]


def test_a_mixture_brings_numbers_to_one_type(tmp_path):
    rows = [{"chosen": "a", "rejected": "b", "margin": margin} for margin in (1, 1.5)]
    entries = [{"path": write(tmp_path / f"{i}.jsonl", [row])} for i, row in enumerate(rows)]
    assert load_splits(ScriptArguments(datasets=entries), seed=0)[0]["margin"][:] == [1.0, 1.5]


def test_a_mixture_of_groups_takes_ranks_beside_scores_and_whole_numbers_beside_fractions(tmp_path):
    orders = [
        {"ranks": [0, 1]},
        {"scores": [0.5, 2]},
        {"ranks": [0.5, 0], "weight": 2},
        {"scores": [1, 2], "weight": 0.5},
    ]
    rows = [{"prompt": "p", "completions": ["a", "b"]} | order for order in orders]
    entries = [{"path": write(tmp_path / f"{i}.jsonl", [row])} for i, row in enumerate(rows)]
    train, _ = load_splits(ScriptArguments(datasets=entries), seed=0)
    assert train["ranks"][:] == [[0.0, 1.0], None, [0.5, 0.0], None]
    assert train["scores"][:] == [None, [0.5, 2.0], None, [1.0, 2.0]]
    assert train["weight"][:] == [None, None, 2.0, 0.5]


def test_a_mixture_refuses_rows_which_do_not_go_together(tmp_path):
    text = write(tmp_path / "text.jsonl", [{"chosen": "a", "rejected": "b"}])
    chat = write(tmp_path / "chat.jsonl", [{"chosen": [user("a")], "rejected": [user("b")]}])
    group = write(tmp_path / "group.jsonl", [{"prompt": "p", "completions": ["a", "b"], "ranks": [0, 1]}])
    with pytest.raises(DataError, match=r"'chosen' of .*chat\.jsonl.*`format`"):
        load_splits(ScriptArguments(datasets=[{"path": text}, {"path": chat}]), seed=0)
    with pytest.raises(
        DataError, match=r"all pairs or all ranked groups.*text\.jsonl has chosen.*group\.jsonl has prompt"
    ):
        load_splits(ScriptArguments(datasets=[{"path": text}, {"path": group}]), seed=0)
    with pytest.raises(DataError, match=r"no column \['x'\].*chosen, rejected"):
        load_splits(ScriptArguments(datasets=[{"path": text, "columns": ["x"]}]), seed=0)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"path": "a", "wieght": 1}], r"entry 0.*'wieght'.*path, name, split.*mean `weight`"),
        ([{"name": "a"}], r"entry 0.*`path`"),
        (["a.jsonl"], r"entry 0.*mapping.*'a\.jsonl'"),
        ([{"path": "a", "weight": 1, "fraction": 1}], r"two names of one option"),
        ([{"path": "a", "weight": 0}], r"above 0, got 0"),
    ],
)
def test_a_mixture_refuses_bad_entries(entries, message):
    with pytest.raises(ConfigError, match=message):
        load_splits(ScriptArguments(datasets=entries), seed=0)


def test_a_mixture_refuses_bad_weights_and_streaming(tmp_path):
    entries = mixture(tmp_path, {"x": 3, "y": 4})
    with pytest.raises(ConfigError, match="every entry"):
        load_splits(ScriptArguments(datasets=[entries[0] | {"weight": 1}, entries[1]]), seed=0)
    with pytest.raises(ConfigError, match="without a row"):
        load_splits(ScriptArguments(datasets=[entries[0] | {"weight": 1e-3}, entries[1] | {"weight": 1}]), seed=0)
    with pytest.raises(ConfigError, match="mixture cannot be streamed"):
        load_splits(ScriptArguments(datasets=entries, dataset_streaming=True), seed=0)


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


# ScriptArguments


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
