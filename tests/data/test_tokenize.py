"""Rows to columns of token ids, pairs and ranked groups, from datasets and streams."""

import logging

import datasets
import pytest
from chat_rows import reply
from datasets import Dataset, load_dataset
from hypothesis import given
from hypothesis import strategies as st

from plaudit.data.prompts import prompt_key
from plaudit.data.rankings import comparisons_of_ranking, ties_of_ranking
from plaudit.data.render import render
from plaudit.data.tokenize import TokenizationRules, tokenize_dataset
from plaudit.errors import DataError

ANY_LENGTH = TokenizationRules(max_length=None)


def pair(chosen, rejected, **columns):
    return {"chosen_ids": list(chosen), "rejected_ids": list(rejected)} | columns


def group(ids, ranks, **columns):
    return {"sequence_ids": [list(one) for one in ids], "ranks": [float(rank) for rank in ranks]} | columns


def numbers(report):
    return report.pairs, report.kept, report.overlong, report.identical, report.tokens


# pairs


def test_a_pair_becomes_the_ids_of_its_rendered_texts(tokenize, tokenizer, text_rows):
    rows, report = tokenize(text_rows)
    whole = [[row["prompt"] + row[side] for side in ("chosen", "rejected")] for row in text_rows]
    ids = [render(tokenizer, texts) for texts in whole]
    assert rows == [pair(*both) for both in ids]
    assert numbers(report) == (10, 10, 0, 0, sum(len(side) for both in ids for side in both))


def test_conversations_are_rendered_with_the_template_options_of_their_row(tokenize, tokenizer, chat_rows):
    marked = [row | {"tools": [{"name": f"t{n}"}] if n else None} for n, row in enumerate(chat_rows)]
    rows, _ = tokenize(marked)
    for n, row in enumerate(marked):
        chats = [row["prompt"] + row[side] for side in ("chosen", "rejected")]
        assert rows[n] == pair(*render(tokenizer, chats, [{"tools": row["tools"]} if n else {}] * 2))


ANNOTATIONS = {
    "margin": ([None, 1.5, 0, -2], [0.0, 1.5, 0.0, -2.0]),
    "weight": ([None, 2, 0.5, 0], [1.0, 2.0, 0.5, 0.0]),
    "label": ([None, 1, 0.25, 0], [1.0, 1.0, 0.25, 0.0]),
    "tie": ([None, True, False, None], [False, True, False, False]),
}


@pytest.mark.parametrize("column", ANNOTATIONS)
def test_an_annotation_that_a_split_has_is_in_every_row_and_no_other(tokenize, text_rows, column, kind):
    values, kept = ANNOTATIONS[column]
    for source in (text_rows[:4], [pair([1], [2])] * 4):
        rows, _ = tokenize([row | {column: value} for row, value in zip(source, values, strict=True)], kind=kind)
        assert [row[column] for row in rows] == kept
        assert all(set(row) == {"chosen_ids", "rejected_ids", column} for row in rows)
        assert all(type(row[column]) is type(kept[0]) for row in rows)


def test_a_tie_is_one_comparison_and_dropped_like_any_other(tokenize):
    fine, identical, overlong = pair([1], [2], tie=True), pair([3], [3], tie=True), pair([1, 2, 3], [4], tie=True)
    kept, report = tokenize([fine, identical, overlong, pair([1], [2], tie=False)], TokenizationRules(max_length=2))
    assert kept == [fine, pair([1], [2], tie=False)]
    assert numbers(report) == (4, 2, 1, 1, 4)


def test_pairs_that_differ_only_in_text_are_identical(tokenize):
    rows, report = tokenize([{"chosen": "dog", "rejected": "dog<eos>"}, {"chosen": "dog", "rejected": "fox"}])
    assert (len(rows), report.identical) == (1, 1)


# ranked groups


def test_a_group_stays_one_row_with_each_response_once(tokenize, tokenizer, kind):
    one = {"prompt": "The sky is", "completions": [" blue", " green", " lazy", " not"], "ranks": [0, 2, 1, 2]}
    two = {"prompt": "Two", "completions": [" a", " b"], "ranks": [1, 0]}
    rows, report = tokenize([one | {"source": "x"}, two | {"source": "y"}], kind=kind)
    ids = [render(tokenizer, [row["prompt"] + text for text in row["completions"]]) for row in (one, two)]
    assert rows == [group(ids[0], one["ranks"], source="x"), group(ids[1], two["ranks"], source="y")]
    tokens = sum(len(sequence) for sequences in ids for sequence in sequences)
    assert numbers(report) == (6, 6, 0, 0, tokens)  # K(K-1)/2 = 6 of four responses, less one tie, and 1 of two


def test_conversations_of_a_group_take_the_rows_template_options(tokenize, tokenizer):
    prompt, tools = [{"role": "user", "content": "p"}], [{"name": "t"}]
    completions = [[reply(word)] for word in "abc"]
    rows, _ = tokenize([{"prompt": prompt, "completions": completions, "ranks": [0, 1, 2], "tools": tools}])
    chats = [prompt + completion for completion in completions]
    assert rows == [group(render(tokenizer, chats, [{"tools": tools}] * 3), [0, 1, 2])]


def test_scores_make_ranks_and_are_kept_where_the_split_has_them(tokenize, kind):
    scored = {"completions": ["a", "b", "c"], "scores": [0.5, 2, 0.5], "ranks": None}
    ranked = {"completions": ["a", "b"], "ranks": [0, 1], "scores": None}
    rows, report = tokenize([scored, ranked], kind=kind)
    assert [row["ranks"] for row in rows] == [[1.0, 0.0, 1.0], [0.0, 1.0]]
    assert [row["scores"] for row in rows] == [[0.5, 2.0, 0.5], None]
    assert report.pairs == 3
    (row,), _ = tokenize([{"completions": ["a", "b"], "scores": [1, 2]}], kind=kind)
    assert (row["ranks"], row["scores"]) == ([1.0, 0.0], [1.0, 2.0])


def test_the_weight_of_a_group_is_kept_where_the_split_has_it(tokenize, kind):
    rows = [{"completions": ["a", "b"], "ranks": [0, 1], "weight": weight} for weight in (2, None, 0)]
    assert [row["weight"] for row in tokenize(rows, kind=kind)[0]] == [2.0, 1.0, 0.0]
    assert set(tokenize([{"completions": ["a", "b"], "ranks": [0, 1]}], kind=kind)[0][0]) == {"sequence_ids", "ranks"}


def test_a_pair_in_a_split_of_groups_is_a_group_of_two(tokenize, tokenizer, kind):
    empty = {"prompt": None, "chosen": None, "rejected": None, "completions": None, "ranks": None}
    pair_row = empty | {"chosen": "dog", "rejected": "fox", "weight": 2.0, "tie": False, "label": None}
    ranked = empty | {"completions": ["a", "b", "c"], "ranks": [2, 1, 0], "weight": None, "tie": None, "label": None}
    rows, report = tokenize([ranked, pair_row], kind=kind)
    ids = render(tokenizer, ["a", "b", "c", "dog", "fox"])
    assert rows == [group(ids[:3], [2, 1, 0], weight=1.0), group(ids[3:], [0, 1], weight=2.0)]
    assert report.pairs == 4


def test_a_group_of_ties_only_is_dropped(tokenize, kind):
    rows, report = tokenize([group([[1], [2]], [0, 0]), group([[1], [2]], [0, 1])], kind=kind)
    assert rows == [group([[1], [2]], [0, 1])]
    assert numbers(report) == (1, 1, 0, 0, 2)


def test_an_overlong_response_is_dropped_with_its_comparisons(tokenize, kind):
    whole = group([[1, 2], [1, 2, 3, 4], [1, 3], [1, 4]], [0, 1, 2, 2], scores=[9.0, 5.0, 1.0, 1.0], id=1)
    rows, report = tokenize([whole], TokenizationRules(max_length=3), kind)
    assert rows == [group([[1, 2], [1, 3], [1, 4]], [0, 2, 2], scores=[9.0, 1.0, 1.0], id=1)]
    assert numbers(report) == (5, 2, 3, 0, 6)


def test_a_group_without_a_comparison_left_is_dropped(tokenize, kind):
    left = group([[1], [2]], [0, 1])
    alone = group([[1], [1, 2], [1, 3]], [0, 1, 2])  # one response fits
    tied = group([[1], [2], [1, 3]], [1, 1, 0])  # the two that fit are tied
    rows, report = tokenize([alone, left, tied], TokenizationRules(max_length=1), kind)
    assert rows == [left]
    assert numbers(report) == (6, 1, 5, 0, 2)


def test_identical_responses_of_a_group_are_counted_and_the_row_stays(tokenize, kind):
    rows, report = tokenize([group([[1], [1], [2]], [0, 1, 2]), group([[3], [3]], [0, 1])], kind=kind)
    assert rows == [group([[1], [1], [2]], [0, 1, 2])]
    assert numbers(report) == (4, 2, 0, 2, 3)


# derived columns


def derived(rows, tokenizer, rules=ANY_LENGTH, *, kind="dataset"):
    dataset = Dataset.from_list(rows)
    dataset = dataset if kind == "dataset" else dataset.to_iterable_dataset()
    return list(tokenize_dataset(dataset, tokenizer, rules, split="train")[0])


def test_a_row_has_its_number_lengths_and_distinct_tokens(shared_tokenizer, kind):
    rows = [pair([1, 2, 3], [1, 2, 4, 5]), pair([6], [6]), pair([1], [1, 2]), pair([1], [2])]
    tokenised = derived(rows, shared_tokenizer, kind=kind)
    assert [row["row_number"] for row in tokenised] == [0, 2, 3]  # the second row is dropped
    assert [row["sequence_lengths"] for row in tokenised] == [[3, 4], [1, 2], [1, 1]]
    assert [row["num_tokens"] for row in tokenised] == [5, 2, 2]
    assert "comparisons" not in tokenised[0]
    (row,) = derived([group([[1, 2, 3], [4], [1, 2, 5], [1, 2, 3]], [0, 1, 2, 3])], shared_tokenizer, kind=kind)
    assert (row["sequence_lengths"], row["num_tokens"]) == ([3, 1, 3, 3], 5)


def test_a_group_has_its_comparisons_best_first_and_its_ties_where_they_count(shared_tokenizer, kind):
    rows = [group([[1], [2], [3], [2]], [1, 0, 1, 2]), group([[1], [2]], [0, 0])]
    (row,) = derived(rows, shared_tokenizer, kind=kind)
    assert row["comparisons"] == [[1, 0], [1, 2], [0, 3], [2, 3]]  # the second and the last are equal
    assert "ties" not in row
    row, tied = derived(rows, shared_tokenizer, TokenizationRules(ties=True), kind=kind)
    assert row["ties"] == [[0, 2]]
    assert (tied["comparisons"], tied["ties"]) == ([], [[0, 1]])


def test_comparisons_are_between_the_sequences_that_are_kept(shared_tokenizer):
    (row,) = derived([group([[1, 1], [2], [3]], [0, 2, 1])], shared_tokenizer, TokenizationRules(max_length=1))
    assert (row["sequence_ids"], row["comparisons"]) == ([[2], [3]], [[1, 0]])


@pytest.mark.parametrize("kind", ["dataset", "stream"])
def test_rows_of_one_prompt_share_a_key(shared_tokenizer, kind):
    rows = [
        {"prompt": [{"role": "user", "content": prompt}], "chosen": [reply(f"yes {n}")], "rejected": [reply("no")]}
        for n, prompt in enumerate(["a", "b", "a", "c", "b"])
    ]
    a, b, c = (prompt_key([{"role": "user", "content": prompt}]) for prompt in "abc")
    assert [row["prompt_key"] for row in derived(rows, shared_tokenizer, kind=kind)] == [a, b, a, c, b]
    implicit = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows]
    assert [row["prompt_key"] for row in derived(implicit, shared_tokenizer, kind=kind)] == [a, b, a, c, b]
    pair_row = {"prompt": "Two? ", "chosen": "a", "rejected": "b", "completions": None, "ranks": None}
    ranked = {"prompt": "Two? ", "chosen": None, "rejected": None, "completions": ["a", "b", "c"], "ranks": [0, 1, 2]}
    mixed = derived([pair_row, ranked], shared_tokenizer, kind=kind)
    assert [row["prompt_key"] for row in mixed] == [prompt_key("Two? ")] * 2


def test_tokenised_rows_are_keyed_by_the_ids_that_their_sequences_share(shared_tokenizer):
    pairs = [([5, 6, 7], [5, 6, 8]), ([5, 6, 9], [5, 6]), ([5, 7, 7], [5, 7, 8]), ([1], [2]), ([3], [4])]
    one, same, other, *alone = (row["prompt_key"] for row in derived([pair(*ids) for ids in pairs], shared_tokenizer))
    assert one == same == prompt_key([5, 6])
    assert len({one, other, *alone}) == 4  # rows whose sequences share nothing have a key of their own
    (row,) = derived([group([[5, 6, 7], [5, 6, 8], [5, 6]], [0, 1, 2])], shared_tokenizer)
    assert row["prompt_key"] == one
    (row,) = derived([pair([5, 6, 7], [5, 6, 8])], shared_tokenizer, TokenizationRules(2, "truncate"))
    assert row["prompt_key"] == one  # of the whole prompt, whatever is cut


def test_a_key_that_a_row_has_is_kept_as_a_whole_number(shared_tokenizer):
    row = pair([5, 6], [5, 7])
    rows = derived([row | {"prompt_key": 3}, row | {"prompt_key": None}], shared_tokenizer)
    assert [row["prompt_key"] for row in rows] == [3, prompt_key([5])]
    (row,) = derived([row | {"prompt_key": "p1"}], shared_tokenizer)
    assert row["prompt_key"] == prompt_key("p1")


tokens = st.integers(0, 2)
sequences = st.lists(st.tuples(st.lists(tokens, min_size=1, max_size=5), st.integers(0, 2)), min_size=2, max_size=5)


@given(rows=st.lists(sequences, min_size=1, max_size=4), most=st.integers(1, 7), ties=st.booleans())
def test_the_columns_of_any_groups_agree_with_each_other_and_with_the_report(shared_tokenizer, rows, most, ties):
    rows = [group([ids for ids, _ in row], [rank for _, rank in row], source=n) for n, row in enumerate(rows)]
    stream = Dataset.from_list(rows).to_iterable_dataset()  # reads faster than a dataset is written
    tokenised, report = tokenize_dataset(
        stream, shared_tokenizer, TokenizationRules(most, "truncate", ties=ties), split="x"
    )
    tokenised = list(tokenised)
    kept = 0
    for row in tokenised:
        ids, ranks = row["sequence_ids"], row["ranks"]
        assert row["row_number"] == row["source"]
        assert row["sequence_lengths"] == [len(sequence) for sequence in ids]
        assert row["num_tokens"] == len({tuple(sequence[: n + 1]) for sequence in ids for n in range(len(sequence))})
        assert row["comparisons"] == [list(each) for each in comparisons_of_ranking(ids, ranks)]
        assert row.get("ties", []) == ([list(each) for each in ties_of_ranking(ids, ranks)] if ties else [])
        kept += len(row["comparisons"]) + len(row.get("ties", []))
    assert report.kept == kept
    assert report.tokens == sum(sum(row["sequence_lengths"]) for row in tokenised)
    assert report.pairs == sum(a < b or (ties and n < m and a == b) for row in rows
                               for n, a in enumerate(row["ranks"]) for m, b in enumerate(row["ranks"]))  # fmt: skip


# other columns, formats and rows that come tokenised


def test_other_columns_pass_through_with_their_types(tokenize, text_rows):
    labels = datasets.ClassLabel(names=["good", "bad"])
    dataset = Dataset.from_list([row | {"id": n, "kind": n % 2, "meta": {"a": [n]}} for n, row in enumerate(text_rows)])
    rows, _ = tokenize(dataset.cast_column("kind", labels))
    assert [(row["id"], row["kind"], row["meta"]) for row in rows] == [(n, n % 2, {"a": [n]}) for n in range(10)]
    assert all(set(row) == {"id", "kind", "meta", "chosen_ids", "rejected_ids"} for row in rows)


def test_a_dataset_may_be_read_in_another_format(tokenize, text_rows):
    dataset = Dataset.from_list([row | {"margin": 1.0} for row in text_rows])
    assert tokenize(dataset.with_format("numpy"))[0] == tokenize(dataset)[0]
    ids = Dataset.from_list([pair([1, 2], [3]), pair([4], [5, 6])])
    assert tokenize(ids.with_format("torch"))[0] == list(ids)


def test_tokenised_rows_are_left_as_they_are(tokenize, kind):
    rows = [pair([5, 6, 7], [5, 8], margin=0.5, id="a"), pair([1], [2], margin=1.0, id="b")]
    assert tokenize(rows, kind=kind)[0] == rows
    assert tokenize([row | {"prompt": "x", "chosen": "y", "rejected": "z"} for row in rows], kind=kind)[0] == rows
    rows = [group([[5, 6], [5, 7], [5]], [0, 2, 1], weight=2.0, id=1), group([[1], [2]], [3.5, 1], weight=0.0, id=2)]
    assert tokenize(rows, kind=kind)[0] == rows
    assert tokenize([row | {"prompt": "x", "completions": ["y"]} for row in rows], kind=kind)[0] == rows


def test_rows_that_plaudit_tokenised_go_through_again_unchanged(tokenizer, kind):
    rows = [{"completions": ["a", "b", "c"], "scores": [0.5, 2, 0.5], "prompt": "p"}]
    once = derived(rows, tokenizer, TokenizationRules(ties=True), kind=kind)
    assert derived(once, tokenizer, TokenizationRules(ties=True), kind=kind) == once


@pytest.mark.parametrize("kind", ["dataset", "stream"])
def test_the_old_column_names_of_trl(tokenize, kind):
    with pytest.warns(FutureWarning, match="rename them to `chosen_ids` and `rejected_ids`"):
        rows, _ = tokenize([{"chosen_input_ids": [1, 2], "rejected_input_ids": [3]}], kind=kind)
    assert rows == [pair([1, 2], [3])]


# rows that cannot be used


def test_ids_beyond_the_embedding_of_the_model_are_named(tokenize):
    rules = TokenizationRules(vocabulary_rows=8)
    assert tokenize([pair([7], [0])], rules)[0] == [pair([7], [0])]
    with pytest.raises(DataError, match=r"row 1: the ids of 'rejected' run from 2 to 8, .* for 0 to 7 only"):
        tokenize([pair([7], [0]), pair([1], [2, 8])], rules)
    with pytest.raises(DataError, match=r"row 0: the ids of 'chosen' run from -1 to 3"):
        tokenize([pair([-1, 3], [2])], rules)
    with pytest.raises(DataError, match=r"row 0: the ids of 'completions\[0\]' .*tokenizer that belongs to the model"):
        tokenize([{"completions": ["dog", "fox"], "ranks": [0, 1]}], rules)
    with pytest.raises(DataError, match=r"row 0: the ids of 'sequence_ids\[2\]' run from 8 to 8"):
        tokenize([group([[1], [2], [8]], [0, 1, 2])], rules)


def test_a_template_that_writes_nothing_is_an_error(tokenize, tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ '' if m.content == 'x' else m.content }}{% endfor %}"
    with pytest.raises(DataError, match=r"row 1: expected at least one token in 'rejected'.*template"):
        tokenize([{"chosen": [reply("a")], "rejected": [reply(b)]} for b in "bx"])


def test_a_bad_row_is_named_by_its_index_in_the_split(tokenize, text_rows, kind):
    rows = text_rows[:3] * 400
    rows[1150] = {"prompt": None, "chosen": "", "rejected": "x"}
    with pytest.raises(DataError, match="row 1150, column 'chosen': expected some text"):
        tokenize(rows, kind=kind)


def test_an_empty_split_is_an_error(tokenize):
    rows = Dataset.from_list([pair([1], [2])])
    with pytest.raises(DataError, match="the test split has no rows"):
        tokenize(rows.select([]), split="test")
    with pytest.raises(DataError, match="the test split has no rows"):
        tokenize(rows.to_iterable_dataset().filter(lambda row: False).map(dict), split="test")
    with pytest.raises(DataError, match="the train split has no rows that make a pair"):
        tokenize([{"completions": ["a", "b"], "ranks": [0, 0]}])


# the report


LONG = [
    pair([1, 2, 3, 4], [1, 2, 5]),  # fits
    pair([1, 2, 3, 4, 5], [1, 2]),  # chosen too long
    pair([1, 2], [1, 2, 3, 4, 5]),  # rejected too long
    pair([7, 8], [7, 8]),  # identical
    pair([1], [2]),
]


def test_dropped_pairs_are_counted_and_logged_once(tokenize, caplog):
    with caplog.at_level(logging.INFO, logger="plaudit"):
        rows, report = tokenize(LONG, TokenizationRules(max_length=4), split="test")
    assert rows == [LONG[0], LONG[4]]
    assert numbers(report) == (5, 2, 2, 1, 9)
    (message,) = caplog.messages
    assert message.startswith("test: 2 pairs, 9 tokens; dropped 3 of 5 (60.0%): 2 longer than max_length=4, 1 with")
    with pytest.raises(DataError, match=r"test: 2 of 3 pairs \(67%\) are longer than max_length=4"):
        tokenize(LONG[:3], TokenizationRules(max_length=4, overlong_max_fraction=0.4), split="test")


def test_truncation_keeps_bos_and_the_end_of_the_response(new_tokenizer, tokenize):
    tokenizer = new_tokenizer(bos="<bos>")
    row = {"prompt": "The quick brown fox jumps over the lazy dog.", "chosen": " Yes, very.", "rejected": " No"}
    chosen, rejected = render(tokenizer, [row["prompt"] + row[side] for side in ("chosen", "rejected")])
    most = len(chosen) - 5
    ((truncated,), report) = tokenize([row], TokenizationRules(most, "truncate"), tokenizer=tokenizer)
    assert truncated == pair([chosen[0], *chosen[6:]], [rejected[0], *rejected[6:]])
    assert (chosen[0], len(truncated["chosen_ids"])) == (tokenizer.bos_token_id, most)
    assert tokenizer.decode(truncated["rejected_ids"]).endswith("dog. No<eos>")
    assert (report.overlong, report.kept) == (0, 1)


def test_a_stream_gives_the_rows_and_the_counts_of_a_dataset(tokenize, text_rows, kind):
    rows = [row | {"margin": None, "id": n} for n, row in enumerate(text_rows * 20)]
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[150]["chosen"] *= 30
    rules = TokenizationRules(max_length=60)
    kept, report = tokenize(rows, rules)
    streamed, counted = tokenize(rows, rules, kind)
    assert streamed == kept
    assert (report.streaming, counted.streaming) == (False, kind != "dataset")
    assert numbers(counted) == numbers(report)
    assert numbers(report)[:4] == (200, 198, 1, 1)


def test_a_stream_that_is_mostly_overlong_is_stopped(tokenize):
    rules = TokenizationRules(max_length=1, overlong_max_fraction=0.5)
    few = [pair([1, 2], [3])] * 36 + [pair([1], [2])] * 4
    assert len(tokenize(few, rules, "stream")[0]) == 4  # of fewer than 100 pairs the fraction says little
    with pytest.raises(DataError, match=r"91%.*overlong_max_fraction=0\.5"):
        tokenize(few * 15, rules, "stream")


# processes and the cache


def test_two_processes_give_the_rows_of_one(tokenize, text_rows):
    rows = text_rows[:4]
    rows[1] = rows[1] | {"rejected": rows[1]["chosen"]}
    one, two = (tokenize(rows, num_proc=num_proc) for num_proc in (1, 2))
    assert two == one
    nothing_kept_first = [pair([1], [1])] * 4 + [pair([1], [2])] * 4
    assert tokenize(nothing_kept_first, num_proc=2)[0] == nothing_kept_first[4:]


def test_an_error_in_a_worker_process_is_raised_as_it_is(tokenize, text_rows):
    rows = [*text_rows, {"prompt": "p", "chosen": None, "rejected": "x"}]
    with pytest.raises(DataError, match=r"row 10: expected the columns 'chosen' and 'rejected', but 'chosen' is"):
        tokenize(rows, num_proc=2)


def test_the_cache_knows_the_rules_and_the_tokenizer_and_gives_the_same_report(tokenize, tmp_path, new_tokenizer):
    rows = [{"chosen": "a" * n, "rejected": "b"} for n in range(1, 11)] + [{"chosen": "x", "rejected": "x"}]
    Dataset.from_list(rows).to_json(tmp_path / "rows.jsonl")
    cache = str(tmp_path / "cache")
    dataset = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=cache)
    plain, report = tokenize(dataset)
    assert numbers(report)[:4] == (11, 10, 0, 1)
    made = sorted((tmp_path / "cache").rglob("cache-*.arrow"))
    assert tokenize(dataset) == (plain, report)
    assert sorted((tmp_path / "cache").rglob("cache-*.arrow")) == made  # nothing was tokenised again
    longest = max(len(row["chosen_ids"]) for row in plain)
    assert tokenize(dataset, TokenizationRules(max_length=longest - 1))[1].overlong == 1
    assert tokenize(dataset, tokenizer=new_tokenizer(bos="<bos>"))[0] != plain
