import pytest
from chat_rows import reply, user

from plaudit.data.script_arguments import ScriptArguments
from plaudit.data.splits import load_splits
from plaudit.errors import ConfigError, DataError


def mixture(write, sizes, **keys):
    entries = []
    for name, size in sizes.items():
        rows = [{"prompt": f"{name}{i}", "chosen": "a", "rejected": "b"} for i in range(size)]
        entries.append({"path": write(f"{name}.jsonl", rows)} | {k: v[name] for k, v in keys.items()})
    return entries


def origins(dataset):
    return {name: sum(prompt[0] == name for prompt in dataset["prompt"]) for name in "xy"}


@pytest.mark.parametrize("key", ["weight", "fraction"])
def test_a_mixture_holds_its_shares_without_oversampling(write, key):
    entries = mixture(write, {"x": 100, "y": 40}, **{key: {"x": 3, "y": 2}})
    train, test = load_splits(ScriptArguments(datasets=entries), seed=1)
    assert test is None
    assert origins(train) == {"x": 60, "y": 40}
    drawn = [prompt for prompt in train["prompt"] if prompt[0] == "x"]
    assert len(set(drawn)) == 60
    assert drawn != [f"x{i}" for i in range(60)]  # drawn, not the head of the file
    assert load_splits(ScriptArguments(datasets=entries), seed=1)[0]["prompt"][:] == train["prompt"][:]
    assert load_splits(ScriptArguments(datasets=entries), seed=2)[0]["prompt"][:] != train["prompt"][:]


def test_a_mixture_without_weights_is_all_rows_and_takes_eval_fraction(write):
    entries = mixture(write, {"x": 5, "y": 15}, split={"x": "train[:3]", "y": "train"})
    assert origins(load_splits(ScriptArguments(datasets=entries), seed=0)[0]) == {"x": 3, "y": 15}
    train, test = load_splits(ScriptArguments(datasets=entries, eval_fraction=0.5), seed=0)
    assert (len(train), len(test)) == (9, 9)


def test_a_mixture_joins_layouts_and_optional_columns(write):
    transcript = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    scored = {"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": 2}
    native = {"prompt": [user("n")], "chosen": [reply("a")], "rejected": [reply("b")], "id": 1}
    entries = [
        {"path": write("hh.jsonl", [transcript]), "format": "hh"},
        {"path": write("scored.jsonl", [scored]), "format": "helpsteer"},
        {"path": write("native.jsonl", [native]), "columns": ["prompt", "chosen", "rejected"]},
    ]
    train, _ = load_splits(ScriptArguments(datasets=entries), seed=0)
    assert train.column_names == ["chosen", "rejected", "margin", "prompt"]
    assert train["margin"][:] == [None, 2.0, None]
    assert train["prompt"][:] == [None, None, [user("n")]]
    assert [chosen[-1]["content"] for chosen in train["chosen"]] == ["b", "b", "a"]


def test_a_mixture_brings_numbers_to_one_type(write):
    rows = [{"chosen": "a", "rejected": "b", "margin": margin} for margin in (1, 1.5)]
    entries = [{"path": write(f"{i}.jsonl", [row])} for i, row in enumerate(rows)]
    assert load_splits(ScriptArguments(datasets=entries), seed=0)[0]["margin"][:] == [1.0, 1.5]


def test_a_mixture_of_groups_takes_ranks_beside_scores_and_whole_numbers_beside_fractions(write):
    orders = [
        {"ranks": [0, 1]},
        {"scores": [0.5, 2]},
        {"ranks": [0.5, 0], "weight": 2},
        {"scores": [1, 2], "weight": 0.5},
    ]
    rows = [{"prompt": "p", "completions": ["a", "b"]} | order for order in orders]
    entries = [{"path": write(f"{i}.jsonl", [row])} for i, row in enumerate(rows)]
    train, _ = load_splits(ScriptArguments(datasets=entries), seed=0)
    assert train["ranks"][:] == [[0.0, 1.0], None, [0.5, 0.0], None]
    assert train["scores"][:] == [None, [0.5, 2.0], None, [1.0, 2.0]]
    assert train["weight"][:] == [None, None, 2.0, 0.5]


def test_a_mixture_refuses_rows_which_do_not_go_together(write):
    text = write("text.jsonl", [{"chosen": "a", "rejected": "b"}])
    chat = write("chat.jsonl", [{"chosen": [user("a")], "rejected": [user("b")]}])
    group = write("group.jsonl", [{"prompt": "p", "completions": ["a", "b"], "ranks": [0, 1]}])
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


def test_a_mixture_refuses_bad_weights_and_streaming(write):
    entries = mixture(write, {"x": 3, "y": 4})
    with pytest.raises(ConfigError, match="every entry"):
        load_splits(ScriptArguments(datasets=[entries[0] | {"weight": 1}, entries[1]]), seed=0)
    with pytest.raises(ConfigError, match="without a row"):
        load_splits(ScriptArguments(datasets=[entries[0] | {"weight": 1e-3}, entries[1] | {"weight": 1}]), seed=0)
    with pytest.raises(ConfigError, match="mixture cannot be streamed"):
        load_splits(ScriptArguments(datasets=entries, dataset_streaming=True), seed=0)
