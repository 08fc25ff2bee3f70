"""Ranked groups, from rows to columns of token ids."""

import datasets
import pytest
from datasets import Dataset, List, Value
from hypothesis import given
from hypothesis import strategies as st

from plaudit.data import comparisons_of_ranking, convert
from plaudit.data.render import render
from plaudit.data.tokenize import TokenizationRules, tokenize_dataset
from plaudit.errors import DataError

ANY_LENGTH = TokenizationRules(max_length=None)
DERIVED = {"row_number", "prompt_key", "num_tokens", "sequence_lengths", "comparisons", "ties"}


def without_derived(rows):
    return [{name: value for name, value in row.items() if name not in DERIVED} for row in rows]


@pytest.fixture(autouse=True)
def _private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture(params=["dataset", "stream", "stream of unknown columns"])
def kind(request):
    return request.param


@pytest.fixture
def tokenize(tokenizer):
    """A function that tokenises rows and gives those that come out and the report."""

    def run(rows, rules=ANY_LENGTH, kind="dataset", *, tokenizer=tokenizer):
        dataset = Dataset.from_list(rows)
        if kind != "dataset":
            dataset = dataset.to_iterable_dataset()
        if kind == "stream of unknown columns":
            dataset = dataset.map(lambda row: row)
            assert dataset.column_names is None
        tokenised, report = tokenize_dataset(dataset, tokenizer, rules, split="train")
        return without_derived(tokenised), report

    return run


def group(ids, ranks, **columns):
    return {"sequence_ids": [list(one) for one in ids], "ranks": [float(rank) for rank in ranks]} | columns


def numbers(report):
    return report.pairs, report.kept, report.overlong, report.identical, report.tokens


# from rows to columns


def test_a_group_stays_one_row_and_each_response_is_there_once(tokenize, tokenizer, kind):
    one = {"prompt": "The sky is", "completions": [" blue", " green", " lazy", " not"], "ranks": [0, 2, 1, 2]}
    two = {"prompt": "Two", "completions": [" a", " b"], "ranks": [1, 0]}
    rows, report = tokenize([one | {"source": "x"}, two | {"source": "y"}], kind=kind)
    ids = [render(tokenizer, [row["prompt"] + text for text in row["completions"]]) for row in (one, two)]
    assert rows == [group(ids[0], one["ranks"], source="x"), group(ids[1], two["ranks"], source="y")]
    tokens = sum(len(sequence) for sequences in ids for sequence in sequences)
    assert numbers(report) == (6, 6, 0, 0, tokens)  # K(K-1)/2 = 6 of four responses, less one tie, and 1 of two


def test_each_response_of_a_group_is_rendered_once(tokenize, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "plaudit.data.tokenize.render", lambda _, texts, *args, **kwargs: seen.extend(texts) or [[5]] * len(texts)
    )
    with pytest.raises(DataError, match="no pair is left"):
        tokenize([{"completions": ["a", "b", "c", "d"], "ranks": [0, 1, 2, 3]}])
    assert sorted(seen) == ["a", "b", "c", "d"]


def test_conversations_of_a_group_take_the_rows_template_options(tokenize, tokenizer):
    prompt, tools = [{"role": "user", "content": "p"}], [{"name": "t"}]
    completions = [[{"role": "assistant", "content": word}] for word in "abc"]
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


def test_a_groups_weight_is_kept_where_the_split_has_it_and_none_is_one(tokenize, kind):
    rows = [{"completions": ["a", "b"], "ranks": [0, 1], "weight": weight} for weight in (2, None, 0)]
    assert [row["weight"] for row in tokenize(rows, kind=kind)[0]] == [2.0, 1.0, 0.0]
    assert set(tokenize([{"completions": ["a", "b"], "ranks": [0, 1]}], kind=kind)[0][0]) == {"sequence_ids", "ranks"}


def test_the_columns_have_their_types_whatever_comes_first(tokenizer):
    tied = [{"completions": ["a", "b"], "ranks": [0, 0], "scores": None, "weight": None}] * 1000  # a batch of nothing
    last = {"completions": ["a", "b"], "ranks": None, "scores": [1, 0], "weight": 3}
    tokenised, _ = tokenize_dataset(Dataset.from_list([*tied, last]), tokenizer, ANY_LENGTH, split="train")
    number = Value("float64")
    assert tokenised.features == {
        "ranks": List(number), "scores": List(number), "weight": number, "sequence_ids": List(List(Value("int32")))
    }  # fmt: skip
    assert [row["weight"] for row in tokenised] == [3.0]


def test_a_group_all_of_ties_is_no_comparison_and_goes(tokenize, kind):
    rows, report = tokenize([group([[1], [2]], [0, 0]), group([[1], [2]], [0, 1])], kind=kind)
    assert rows == [group([[1], [2]], [0, 1])]
    assert numbers(report) == (1, 1, 0, 0, 2)


# pairs and groups in one split

MIXED = {"prompt": None, "chosen": None, "rejected": None, "completions": None, "ranks": None}


def test_a_pair_in_a_split_of_groups_is_a_group_of_two(tokenize, tokenizer, kind):
    pair = MIXED | {"chosen": "dog", "rejected": "fox", "weight": 2.0, "tie": False, "label": None}
    ranked = MIXED | {"completions": ["a", "b", "c"], "ranks": [2, 1, 0], "weight": None, "tie": None, "label": None}
    rows, report = tokenize([ranked, pair], kind=kind)
    ids = render(tokenizer, ["a", "b", "c", "dog", "fox"])
    assert rows == [group(ids[:3], [2, 1, 0], weight=1.0), group(ids[3:], [0, 1], weight=2.0)]
    assert report.pairs == 4


@pytest.mark.parametrize(("column", "value"), [("margin", 0.5), ("label", 0.5), ("tie", True)])
def test_what_only_a_pair_can_say_is_refused_in_a_split_of_groups(tokenize, kind, column, value):
    ranked = MIXED | {"completions": ["a", "b"], "ranks": [1, 0], column: None}
    pair = MIXED | {"chosen": "dog", "rejected": "fox", column: value}
    with pytest.raises(DataError, match=rf"row 1, column '{column}': .* split of their own"):
        tokenize([ranked, pair], kind=kind)
    with pytest.raises(
        DataError, match=rf"row 0, column '{column}': .*belongs to pair rows and this is a ranked group"
    ):
        tokenize([ranked | {column: value}], kind=kind)


def test_a_group_after_the_first_row_of_a_stream_of_pairs_is_an_error_and_not_lost(tokenizer):
    rows = [{"chosen": "a", "rejected": "b"}, {"completions": ["a", "b"], "ranks": [0, 1]}]
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows)).map(dict)
    with pytest.raises(DataError, match=r"row 1, column 'completions': .*first row of the stream has no such column"):
        list(tokenize_dataset(stream, tokenizer, ANY_LENGTH, split="train")[0])


# groups that come tokenised


def test_tokenised_groups_are_left_as_they_are(tokenize, kind):
    rows = [group([[5, 6], [5, 7], [5]], [0, 2, 1], weight=2.0, id=1), group([[1], [2]], [3.5, 1], weight=0.0, id=2)]
    assert tokenize(rows, kind=kind)[0] == rows
    assert tokenize([row | {"prompt": "x", "completions": ["y"]} for row in rows], kind=kind)[0] == rows


def test_what_was_tokenised_once_goes_through_again_unchanged(tokenize, kind):
    once, _ = tokenize([{"completions": ["a", "b", "c"], "scores": [0.5, 2, 0.5]}], kind=kind)
    assert tokenize(once, kind=kind)[0] == once
    assert tokenize([{"sequence_ids": once[0]["sequence_ids"], "scores": [0.5, 2, 0.5]}], kind=kind)[0] == once


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequence_ids": [[1]]}, r"row 1, column 'sequence_ids': expected two or more lists .*\[\[1\]\]"),
        ({"sequence_ids": None}, r"row 1, column 'sequence_ids': expected two or more lists .*None"),
        ({"sequence_ids": [[1], []]}, r"row 1, column 'sequence_ids\[1\]': expected a list of one or more token ids"),
        ({"sequence_ids": [None, [1]]}, r"row 1, column 'sequence_ids\[0\]': expected a list of one or more token ids"),
        ({"ranks": [0]}, r"row 1, column 'ranks': expected one number for each of the 2"),
        ({"ranks": None}, r"row 1, column 'ranks': expected one number for each of the 2"),
        ({"ranks": None, "scores": [1.0]}, r"row 1, column 'scores': expected one number for each of the 2"),
        ({"scores": [0.0, 1.0]}, r"row 1, columns 'ranks' and 'scores': expected both to order the responses alike"),
        ({"weight": -1.0}, r"row 1, column 'weight': expected a finite number of 0 or more"),
        ({"margin": 1.0}, r"row 1, column 'margin': .*belongs to pair rows"),
    ],
)
def test_bad_tokenised_groups_are_named_with_row_and_column(tokenize, change, message):
    fine = group([[1], [2]], [0, 1])
    with pytest.raises(DataError, match=message):
        tokenize([fine | dict.fromkeys(change.keys() - fine.keys()), fine | change])


def test_token_ids_of_pairs_and_of_groups_at_once_are_an_error(tokenize):
    with pytest.raises(DataError, match="'chosen_ids'.*'sequence_ids'.*has both"):
        tokenize([group([[1], [2]], [0, 1], chosen_ids=[1], rejected_ids=[2])])


def test_ids_beyond_the_models_embedding_name_the_response(tokenize):
    rules = TokenizationRules(vocabulary_rows=8)
    with pytest.raises(DataError, match=r"row 0: the ids of 'sequence_ids\[2\]' run from 8 to 8, .* for 0 to 7 only"):
        tokenize([group([[1], [2], [8]], [0, 1, 2])], rules)
    with pytest.raises(DataError, match=r"row 0: the ids of 'completions\[0\]'"):
        tokenize([{"completions": ["dog", "fox"], "ranks": [0, 1]}], rules)


# what is dropped


def test_an_overlong_response_goes_with_its_comparisons_and_the_others_stay(tokenize, kind):
    whole = group([[1, 2], [1, 2, 3, 4], [1, 3], [1, 4]], [0, 1, 2, 2], scores=[9.0, 5.0, 1.0, 1.0], id=1)
    rows, report = tokenize([whole], TokenizationRules(max_length=3), kind)
    assert rows == [group([[1, 2], [1, 3], [1, 4]], [0, 2, 2], scores=[9.0, 1.0, 1.0], id=1)]
    assert numbers(report) == (5, 2, 3, 0, 6)


def test_a_group_with_no_comparison_left_goes(tokenize, kind):
    left = group([[1], [2]], [0, 1])
    alone = group([[1], [1, 2], [1, 3]], [0, 1, 2])  # one response fits
    tied = group([[1], [2], [1, 3]], [1, 1, 0])  # the two that fit are tied
    rows, report = tokenize([alone, left, tied], TokenizationRules(max_length=1), kind)
    assert rows == [left]
    assert numbers(report) == (6, 1, 5, 0, 2)


def test_comparisons_of_equal_ids_are_counted_as_identical_and_the_row_stays(tokenize, kind):
    rows, report = tokenize([group([[1], [1], [2]], [0, 1, 2]), group([[3], [3]], [0, 1])], kind=kind)
    assert rows == [group([[1], [1], [2]], [0, 1, 2])]
    assert numbers(report) == (4, 2, 0, 2, 3)
    assert comparisons_of_ranking(rows[0]["sequence_ids"], rows[0]["ranks"]) == [(0, 2), (1, 2)]


def test_an_overlong_response_is_an_error_where_that_is_asked_for(tokenize):
    rules = TokenizationRules(max_length=3, overlong="error")
    fine = group([[1], [2], [3]], [0, 1, 2])
    assert tokenize([fine], rules)[0] == [fine]
    with pytest.raises(DataError, match=r"row 1: its longest sequence has 4 tokens, more than max_length=3"):
        tokenize([fine, group([[1], [2, 3], [4, 5, 6, 7]], [0, 1, 2])], rules)


def test_truncation_cuts_what_all_share_by_the_same_number_of_tokens(tokenize, kind):
    rules = TokenizationRules(max_length=4, overlong="truncate")
    rows, report = tokenize([group([[1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 3, 4, 5, 6]], [0, 1, 2])], rules, kind)
    assert rows == [group([[3, 4], [3, 5, 6], [3, 4, 5, 6]], [0, 1, 2])]
    assert numbers(report) == (3, 3, 0, 0, 9)


def test_truncation_drops_what_still_does_not_fit_and_cuts_no_more_than_the_rest_needs(tokenize, kind):
    rules = TokenizationRules(max_length=4, overlong="truncate")
    whole = group([[1, 2, 7], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7]], [0, 1, 2])  # two are shared, three too many
    rows, report = tokenize([whole], rules, kind)
    assert rows == [group([[2, 7], [2, 3, 4, 5]], [0, 1])]
    assert numbers(report) == (3, 1, 2, 0, 6)


def test_truncation_of_a_group_keeps_bos(new_tokenizer, tokenize):
    tokenizer = new_tokenizer(bos="<bos>")
    bos = tokenizer.bos_token_id
    rules = TokenizationRules(max_length=3, overlong="truncate")
    rows, _ = tokenize([group([[bos, 2, 3, 4], [bos, 2, 5], [bos, 2]], [0, 1, 2])], rules, tokenizer=tokenizer)
    assert rows == [group([[bos, 2, 5], [bos, 2]], [1, 2])]  # the last keeps its last token, so nothing can be cut
    rows, _ = tokenize([group([[bos, 2, 3, 4], [bos, 2, 5], [bos, 2, 6]], [0, 1, 2])], rules, tokenizer=tokenizer)
    assert rows == [group([[bos, 3, 4], [bos, 5], [bos, 6]], [0, 1, 2])]


@pytest.fixture(scope="module")
def shared_tokenizer(new_tokenizer):
    return new_tokenizer()


tokens = st.integers(0, 2)
tails = st.lists(st.tuples(st.lists(tokens, min_size=1, max_size=5), st.integers(0, 2)), min_size=2, max_size=5)
policies = st.sampled_from(["drop", "truncate"])


@given(shared=st.lists(tokens, max_size=5), tails=tails, most=st.integers(1, 7), how=policies)
def test_any_group_within_any_length(shared_tokenizer, shared, tails, most, how):
    sequences, ranks = [shared + tail for tail, _ in tails], [rank for _, rank in tails]
    row = group(sequences, ranks, scores=[-float(rank) for rank in ranks], place=0)
    try:
        tokenised, report = tokenize_dataset(
            Dataset.from_list([row]), shared_tokenizer, TokenizationRules(most, how), split="train"
        )
    except DataError:
        return
    (kept,) = tokenised
    assert all(len(ids) <= most for ids in kept["sequence_ids"])
    assert kept["scores"] == [-rank for rank in kept["ranks"]]
    assert report.kept == len(comparisons_of_ranking(kept["sequence_ids"], kept["ranks"])) > 0
    assert report.pairs == sum(a < b for a in ranks for b in ranks)
    # Some cut, the same for all, makes the kept sequences of the given ones, in their order.
    cuts = [cut for cut in range(len(min(sequences, key=len))) if all(s[:cut] == sequences[0][:cut] for s in sequences)]
    made = [
        [[s[cut:], float(r)] for s, r in zip(sequences, ranks, strict=True) if len(s) - cut <= most] for cut in cuts
    ]
    assert [list(pair) for pair in zip(kept["sequence_ids"], kept["ranks"], strict=True)] in made
    assert how == "truncate" or kept["sequence_ids"] == [s for s in sequences if len(s) <= most]


# from published rankings


def test_a_converted_ranking_goes_through_with_its_ties_kept(tokenize):
    rows = [{"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 5, 1]}] * 2
    for keep_ties in (False, True):
        converted = convert(Dataset.from_list(rows), "ranked", keep_ties=keep_ties)
        assert converted.column_names == ["prompt", "completions", "ranks"]
        assert tokenize(list(converted))[1].pairs == 4


def test_two_processes_give_what_one_gives(tokenizer):
    dataset = Dataset.from_list([{"completions": [f"a{n}", "b", "c"], "ranks": [0, n % 2, 1]} for n in range(10)])
    one, two = (tokenize_dataset(dataset, tokenizer, ANY_LENGTH, split="train", num_proc=n) for n in (1, 2))
    assert (list(two[0]), two[1]) == (list(one[0]), one[1])
