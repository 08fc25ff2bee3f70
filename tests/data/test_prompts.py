import datasets
import pytest
from datasets import Dataset

from plaudit.data.prompts import prompt_key, prompt_of
from plaudit.data.tokenize import TokenizationRules, tokenize_dataset

KEYED = TokenizationRules(max_length=None)


@pytest.fixture(autouse=True)
def _private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def user(text, **fields):
    return {"role": "user", "content": text, **fields}


def reply(text):
    return {"role": "assistant", "content": text}


def keys(rows, tokenizer, rules=KEYED, *, streaming=False):
    dataset = Dataset.from_list(rows)
    tokenised, _ = tokenize_dataset(
        dataset.to_iterable_dataset() if streaming else dataset, tokenizer, rules, split="train"
    )
    return [row.get("prompt_key") for row in tokenised]


def test_a_key_is_the_same_on_any_day_and_fits_63_bits():
    assert prompt_key("2+2?") == 4124776273588921228
    assert all(0 <= prompt_key(str(n)) < 2**63 for n in range(200))
    assert len({prompt_key(str(n)) for n in range(200)}) == 200


def test_a_key_does_not_see_what_arrow_filled_in():
    assert prompt_key([user("a", name=None)]) == prompt_key([user("a")]) != prompt_key([user("a", name="x")])


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "2+2? ", "chosen": "4", "rejected": "5"}, "2+2? "),
        ({"chosen": "What is 2+2? It is 4.", "rejected": "What is 2+2? It was 5."}, "What is 2+2?"),
        (
            {"chosen": "Human: hi\n\nAssistant: a b", "rejected": "Human: hi\n\nAssistant: a c"},
            "Human: hi\n\nAssistant:",
        ),
        ({"chosen": [user("p"), reply("a")], "rejected": [user("p"), reply("b")]}, [user("p")]),
        ({"chosen": [user("p"), reply("a")], "rejected": [user("p"), reply("a")]}, [user("p")]),
        ({"prompt": "", "completions": ["Two? a", "Two? b", "Two? c"]}, "Two?"),
        ({"prompt": None, "completions": [[user("p"), reply(r)] for r in "abb"]}, [user("p")]),
        ({"chosen": "a", "rejected": "b"}, ["a", "b"]),
    ],
)
def test_a_prompt_is_said_or_what_all_responses_begin_with(row, prompt):
    assert prompt_of(row) == prompt


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_one_prompt_get_one_key_and_others_get_others(tokenizer, streaming):
    rows = [
        {"prompt": [user(prompt)], "chosen": [reply(f"yes {n}")], "rejected": [reply("no")]}
        for n, prompt in enumerate(["a", "b", "a", "c", "b"])
    ]
    a, b, again_a, c, again_b = keys(rows, tokenizer, streaming=streaming)
    assert (a, b) == (again_a, again_b)
    assert len({a, b, c}) == 3
    implicit = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows]
    assert keys(implicit, tokenizer, streaming=streaming) == [a, b, a, c, b]
    assert a == prompt_key([user("a")])


def test_pairs_and_groups_of_one_prompt_share_a_key(tokenizer):
    pair = {"prompt": "Two? ", "chosen": "a", "rejected": "b", "completions": None, "ranks": None}
    group = {"prompt": "Two? ", "chosen": None, "rejected": None, "completions": ["a", "b", "c"], "ranks": [0, 1, 2]}
    assert keys([pair, group], tokenizer) == [prompt_key("Two? ")] * 2


def test_rows_that_come_tokenised_are_keyed_by_the_ids_they_begin_with(tokenizer):
    pairs = [([5, 6, 7], [5, 6, 8]), ([5, 6, 9], [5, 6]), ([5, 7, 7], [5, 7, 8]), ([1], [2]), ([3], [4])]
    one, same, other, *alone = keys([{"chosen_ids": a, "rejected_ids": b} for a, b in pairs], tokenizer)
    assert one == same == prompt_key([5, 6])
    assert len({one, other, *alone}) == 4  # with nothing in common, a row stands alone
    group = {"sequence_ids": [[5, 6, 7], [5, 6, 8], [5, 6]], "ranks": [0, 1, 2]}
    assert keys([group], tokenizer) == [one]


def test_a_key_is_that_of_the_whole_prompt_whatever_is_cut(tokenizer):
    row = {"chosen_ids": [5, 6, 7], "rejected_ids": [5, 6, 8]}
    rules = TokenizationRules(max_length=2, overlong="truncate")
    assert keys([row], tokenizer, rules) == [prompt_key([5, 6])]


def test_a_key_that_a_row_has_is_kept_as_a_whole_number(tokenizer):
    row = {"chosen_ids": [5, 6], "rejected_ids": [5, 7]}
    assert keys([row | {"prompt_key": 3}, row | {"prompt_key": None}], tokenizer) == [3, prompt_key([5])]
    assert keys([row | {"prompt_key": "p1"}], tokenizer) == [prompt_key("p1")]


def test_a_key_is_a_whole_number_of_64_bits(tokenizer):
    dataset = Dataset.from_list([{"chosen_ids": [5, 6], "rejected_ids": [5, 7]}])
    tokenised, _ = tokenize_dataset(dataset, tokenizer, KEYED, split="train")
    assert tokenised.features["prompt_key"] == datasets.Value("int64")
