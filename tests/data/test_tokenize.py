import logging

import datasets
import pytest
from datasets import Dataset, IterableDataset, load_dataset
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.fixture
def tokenize(tokenizer):
    """A function that tokenises rows, or a dataset, and gives the rows that come out and the report."""

    def run(rows, rules=ANY_LENGTH, *, tokenizer=tokenizer, split="train", num_proc=None):
        dataset = Dataset.from_list(rows) if isinstance(rows, list) else rows
        tokenised, report = tokenize_dataset(dataset, tokenizer, rules, split=split, num_proc=num_proc)
        return without_derived(tokenised), report

    return run


def pair(chosen, rejected, **columns):
    return {"chosen_ids": list(chosen), "rejected_ids": list(rejected)} | columns


def reply(text):
    return {"role": "assistant", "content": text}


def numbers(report):
    return report.pairs, report.kept, report.overlong, report.identical, report.tokens


# from rows to columns of ids


def test_rows_become_ids_of_the_rendered_texts(tokenize, tokenizer, text_rows):
    rows, report = tokenize(text_rows)
    whole = [[row["prompt"] + row[side] for side in ("chosen", "rejected")] for row in text_rows]
    ids = [render(tokenizer, texts) for texts in whole]
    assert rows == [pair(*both) for both in ids]
    assert numbers(report) == (10, 10, 0, 0, sum(len(side) for both in ids for side in both))


def test_conversations_with_their_template_options(tokenize, tokenizer, chat_rows):
    marked = [row | {"tools": [{"name": f"t{n}"}] if n else None} for n, row in enumerate(chat_rows)]
    rows, _ = tokenize(marked)
    for n, row in enumerate(marked):
        chats = [row["prompt"] + row[side] for side in ("chosen", "rejected")]
        assert rows[n] == pair(*render(tokenizer, chats, [{"tools": row["tools"]} if n else {}] * 2))


def test_margins_are_kept_and_none_is_zero(tokenize, text_rows):
    margins = [None, 1.5, 0, -2]
    rows, _ = tokenize([row | {"margin": margin} for row, margin in zip(text_rows[:4], margins, strict=True)])
    assert [row["margin"] for row in rows] == [0.0, 1.5, 0.0, -2.0]
    rows, _ = tokenize([pair([1], [2], margin=margin) for margin in margins])
    assert [row["margin"] for row in rows] == [0.0, 1.5, 0.0, -2.0]
    assert "margin" not in tokenize(text_rows)[0][0]


SAID = {
    "weight": ([None, 2, 0.5, 0], [1.0, 2.0, 0.5, 0.0]),
    "label": ([None, 1, 0.25, 0], [1.0, 1.0, 0.25, 0.0]),
    "tie": ([None, True, False, None], [False, True, False, False]),
}


@pytest.mark.parametrize("column", SAID)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_that_a_split_has_is_in_every_row_and_no_other(tokenize, text_rows, column, streaming):
    given_, kept = SAID[column]
    ids = [pair([1], [2])] * 4
    for source in (text_rows[:4], ids):
        dataset = Dataset.from_list([row | {column: value} for row, value in zip(source, given_, strict=True)])
        rows, _ = tokenize(dataset.to_iterable_dataset() if streaming else dataset)
        assert [row[column] for row in rows] == kept
        assert all(set(row) == {"chosen_ids", "rejected_ids", column} for row in rows)
        assert all(type(row[column]) is type(kept[0]) for row in rows)


def test_a_bad_value_of_a_tokenised_row_is_named(tokenize):
    for column, value, expected in [
        ("weight", -1.0, "of 0 or more"),
        ("label", 1.5, "from 0 to 1"),
        ("tie", 1, "true"),
    ]:
        with pytest.raises(DataError, match=rf"row 0, column '{column}': expected .*{expected}.* got .*{value}"):
            tokenize([pair([1], [2]) | {column: value}])
    with pytest.raises(DataError, match="row 0, columns 'tie' and 'label'"):
        tokenize([pair([1], [2], tie=True, label=0.5)])


def test_a_tie_is_one_comparison_and_dropped_like_any_other(tokenize):
    rows = [
        pair([1], [2], tie=True),
        pair([3], [3], tie=True),
        pair([1, 2, 3], [4], tie=True),
        pair([1], [2], tie=False),
    ]
    kept, report = tokenize(rows, TokenizationRules(max_length=2))
    assert kept == [rows[0], rows[3]]
    assert numbers(report) == (4, 2, 1, 1, 4)


def test_a_column_that_a_stream_did_not_begin_with_is_an_error_and_not_lost(tokenize):
    for late in ({"weight": 2.0}, {"margin": 1.0}, {"tie": True}, {"label": 0.5}):
        (column,) = late
        for row in ({"chosen": "a", "rejected": "b"}, pair([1], [2])):
            stream = IterableDataset.from_generator(lambda row=row, late=late: iter([row, row, row | late]))
            with pytest.raises(DataError, match=rf"row 2, column '{column}': .*first row of the stream has no such"):
                tokenize(stream.map(dict))


def test_other_columns_pass_through_with_their_types(tokenize, text_rows):
    labels = datasets.ClassLabel(names=["good", "bad"])
    dataset = Dataset.from_list([row | {"id": n, "kind": n % 2, "meta": {"a": [n]}} for n, row in enumerate(text_rows)])
    dataset = dataset.cast_column("kind", labels)
    rows, _ = tokenize(dataset)
    assert [(row["id"], row["kind"], row["meta"]) for row in rows] == [(n, n % 2, {"a": [n]}) for n in range(10)]
    assert all(set(row) == {"id", "kind", "meta", "chosen_ids", "rejected_ids"} for row in rows)


def test_the_columns_have_their_types_whatever_comes_first(tokenizer, tokenize):
    same = [pair([1, 2], [1, 2], margin=None)] * 1000  # a whole batch of which nothing is kept
    dataset, _ = tokenize_dataset(
        Dataset.from_list([*same, pair([1, 2], [3], margin=None)]), tokenizer, ANY_LENGTH, split="train"
    )
    ids = datasets.List(datasets.Value("int32"))
    assert dataset.features == {"margin": datasets.Value("float64"), "chosen_ids": ids, "rejected_ids": ids}
    assert list(dataset) == [pair([1, 2], [3], margin=0.0)]


def test_a_dataset_read_in_another_format(tokenize, text_rows):
    dataset = Dataset.from_list([row | {"margin": 1.0} for row in text_rows])
    assert tokenize(dataset.with_format("numpy"))[0] == tokenize(dataset)[0]
    ids = Dataset.from_list([pair([1, 2], [3]), pair([4], [5, 6])])
    assert tokenize(ids.with_format("torch"))[0] == list(ids)


# what is dropped


LONG = [
    pair([1, 2, 3, 4], [1, 2, 5]),  # fits
    pair([1, 2, 3, 4, 5], [1, 2]),  # chosen too long
    pair([1, 2], [1, 2, 3, 4, 5]),  # rejected too long
    pair([7, 8], [7, 8]),  # nothing to tell apart
    pair([1], [2]),
]


def test_overlong_and_identical_pairs_are_dropped_counted_and_said_once(tokenize, caplog):
    with caplog.at_level(logging.INFO, logger="plaudit"):
        rows, report = tokenize(LONG, TokenizationRules(max_length=4), split="test")
    assert rows == [LONG[0], LONG[4]]
    assert numbers(report) == (5, 2, 2, 1, 9)
    assert caplog.messages == [
        "test: 2 pairs, 9 tokens; dropped 3 of 5 (60.0%): 2 longer than max_length=4, 1 with the same ids in chosen "
        "and rejected. Raise `max_length` (None for no limit), or set `overlong` to 'truncate'."
    ]
    assert caplog.records[0].levelno == logging.WARNING


def test_nothing_dropped_is_said_without_a_warning(tokenize, caplog):
    with caplog.at_level(logging.INFO, logger="plaudit"):
        rows, report = tokenize(LONG[:3])
    assert rows == LONG[:3]
    assert numbers(report) == (3, 3, 0, 0, 21)
    assert caplog.messages == ["train: 3 pairs, 21 tokens"]


@pytest.mark.parametrize(("overlong", "identical", "advises"), [(2, 0, False), (3, 0, True), (0, 3, False)])
def test_a_drop_is_a_warning_that_names_the_cause_and_advises_past_a_fifth(
    tokenize, caplog, overlong, identical, advises
):
    kept = [pair([1], [2])] * (10 - overlong - identical)
    tokenize([pair([1, 2], [3])] * overlong + [pair([1], [1])] * identical + kept, TokenizationRules(max_length=1))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"dropped {overlong + identical} of 10 ({overlong + identical}0.0%)" in caplog.text
    assert (f"{overlong} longer than max_length=1" in caplog.text) == (overlong > 0)
    assert (f"{identical} with the same ids in chosen and rejected" in caplog.text) == (identical > 0)
    assert ("Raise `max_length`" in caplog.text) == advises


def test_pairs_that_differ_only_in_text_are_identical(tokenize):
    rows, report = tokenize([{"chosen": "dog", "rejected": "dog<eos>"}, {"chosen": "dog", "rejected": "fox"}])
    assert (len(rows), report.identical) == (1, 1)


def test_overlong_max_fraction(tokenize):
    rules = TokenizationRules(max_length=4, overlong_max_fraction=0.4)
    assert tokenize(LONG, rules)[1].overlong == 2  # just 40%; the identical pair does not count
    with pytest.raises(DataError) as error:
        tokenize(LONG[:3], rules, split="test")
    for part in (
        "test: 2 of 3 pairs (67%)",
        "max_length=4",
        "overlong_max_fraction=0.4",
        "set `overlong` to 'truncate'",
    ):
        assert part in str(error.value)


def test_a_split_left_empty_is_an_error(tokenize):
    with pytest.raises(DataError, match=r"no pair is left of 2 \(2 longer than max_length=4\)\. Raise `max_length`"):
        tokenize(LONG[1:3], TokenizationRules(max_length=4))
    with pytest.raises(DataError, match=r"no pair is left of 1 \(1 with the same ids in chosen and rejected\)"):
        tokenize(LONG[3:4])
    with pytest.raises(DataError, match="the test split has no rows"):
        tokenize(Dataset.from_list(LONG).select([]), split="test")
    with pytest.raises(DataError, match="the test split has no rows"):
        tokenize(Dataset.from_list(LONG).to_iterable_dataset().filter(lambda row: False).map(dict), split="test")
    with pytest.raises(DataError, match="the train split has no rows that make a pair"):
        tokenize([{"completions": ["a", "b"], "ranks": [0, 0]}])


# overlong


def test_overlong_error_names_the_row(tokenize):
    with pytest.raises(DataError, match=r"row 1: its longest sequence has 5 tokens, more than max_length=4"):
        tokenize(LONG, TokenizationRules(max_length=4, overlong="error"))
    assert tokenize(LONG[:1], TokenizationRules(max_length=4, overlong="error"))[0] == LONG[:1]


def test_truncation_cuts_both_sides_alike_from_the_left(tokenize):
    rows, report = tokenize(
        [pair([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 7]), pair([1, 2, 3, 8], [1, 2, 3, 9, 9, 9]), pair([1, 2], [1, 3])],
        TokenizationRules(max_length=4, overlong="truncate"),
    )
    assert rows == [pair([3, 4, 5, 6], [3, 4, 7]), pair([3, 8], [3, 9, 9, 9]), pair([1, 2], [1, 3])]
    assert numbers(report) == (3, 3, 0, 0, 17)


def test_truncation_keeps_bos_and_the_responses_end(new_tokenizer, tokenize):
    tokenizer = new_tokenizer(bos="<bos>")
    row = {"prompt": "The quick brown fox jumps over the lazy dog.", "chosen": " Yes, very.", "rejected": " No"}
    chosen, rejected = render(tokenizer, [row["prompt"] + row[side] for side in ("chosen", "rejected")])
    most = len(chosen) - 5
    ((truncated,), report) = tokenize([row], TokenizationRules(most, "truncate"), tokenizer=tokenizer)
    assert truncated == pair([chosen[0], *chosen[6:]], [rejected[0], *rejected[6:]])
    assert (chosen[0], len(truncated["chosen_ids"])) == (tokenizer.bos_token_id, most)
    assert tokenizer.decode(truncated["rejected_ids"]).endswith("dog. No<eos>")
    assert (report.overlong, report.kept) == (0, 1)


def test_truncation_drops_a_pair_whose_shared_part_is_too_short(tokenize, new_tokenizer):
    rules = TokenizationRules(max_length=3, overlong="truncate")
    rows, report = tokenize([pair([1, 2, 3, 4, 5], [1, 9]), pair([1, 2, 3, 4, 5], [1, 2, 9])], rules)
    assert rows == [pair([3, 4, 5], [9])]
    assert numbers(report) == (2, 1, 1, 0, 4)
    tokenizer = new_tokenizer(bos="<bos>")
    bos = tokenizer.bos_token_id
    rows, report = tokenize(
        [pair([bos, 2, 3, 4], [bos, 9]), pair([bos, 2, 3, 4], [bos, 2, 9])], rules, tokenizer=tokenizer
    )
    assert rows == [pair([bos, 3, 4], [bos, 9])]  # of the first pair, only BOS is shared, and that stays
    assert report.overlong == 1


def test_truncation_leaves_the_shorter_response_its_last_token(tokenize):
    rules = TokenizationRules(max_length=2, overlong="truncate")
    rows, report = tokenize([pair([1, 2, 3, 4], [1, 2, 3]), pair([1, 2, 3, 4], [1, 2])], rules)
    assert rows == [pair([3, 4], [3])]
    assert report.overlong == 1


ids_lists = st.lists(st.integers(0, 3), min_size=1, max_size=8)


@given(shared=st.lists(st.integers(0, 3), max_size=8), ends=st.tuples(ids_lists, ids_lists), most=st.integers(1, 12))
def test_truncation_of_any_pair(shared_tokenizer, shared, ends, most):
    chosen, rejected = (shared + end for end in ends)
    try:
        dataset, _ = tokenize_dataset(
            Dataset.from_list([pair(chosen, rejected)]),
            shared_tokenizer,
            TokenizationRules(most, "truncate"),
            split="train",
        )
    except DataError:
        return
    (row,) = dataset
    assert 0 < max(map(len, row.values())) <= max(most, 1)
    cuts = {len(whole) - len(row[f"{side}_ids"]) for side, whole in (("chosen", chosen), ("rejected", rejected))}
    assert cuts == {max(0, len(chosen) - most, len(rejected) - most)}
    assert chosen[-len(row["chosen_ids"]) :] == row["chosen_ids"]
    assert rejected[-len(row["rejected_ids"]) :] == row["rejected_ids"]
    (cut,) = cuts
    assert chosen[:cut] == rejected[:cut]


@pytest.fixture(scope="module")
def shared_tokenizer(new_tokenizer):
    return new_tokenizer()


# rows that cannot be


def test_ids_beyond_the_models_embedding(tokenize):
    rules = TokenizationRules(vocabulary_rows=8)
    assert tokenize([pair([7], [0])], rules)[0] == [pair([7], [0])]
    with pytest.raises(DataError, match=r"row 1: the ids of 'rejected' run from 2 to 8, .* for 0 to 7 only"):
        tokenize([pair([7], [0]), pair([1], [2, 8])], rules)
    with pytest.raises(DataError, match=r"row 0: the ids of 'chosen' run from -1 to 3"):
        tokenize([pair([-1, 3], [2])], rules)
    with pytest.raises(DataError, match=r"row 0: the ids of 'chosen' .*tokenizer that belongs to the model"):
        tokenize([{"chosen": "dog", "rejected": "fox"}], rules)


def test_a_template_that_writes_nothing(tokenize, tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ '' if m.content == 'x' else m.content }}{% endfor %}"
    with pytest.raises(DataError, match=r"row 1: expected at least one token in 'rejected'.*template"):
        tokenize([{"chosen": [reply("a")], "rejected": [reply(b)]} for b in "bx"])


@pytest.mark.parametrize(
    ("ids", "came"),
    [([], r"\[\]"), (None, "None"), ([1, None], "None"), ([0.5], "0.5"), ("dog", "'dog'"), ([[1]], r"\[\[1\]\]")],
)
def test_bad_tokenised_rows(tokenize, ids, came):
    for column in ("chosen_ids", "rejected_ids"):
        with pytest.raises(DataError, match=rf"row 0, column '{column}': expected a list .*token ids, got .*{came}"):
            tokenize([pair([1], [2]) | {column: ids}])
    with pytest.raises(DataError, match=r'Example of the right shape: \{"chosen_ids": \['):
        tokenize([pair([1], [2]) | {"chosen_ids": ids}])


def test_a_bad_margin_of_a_tokenised_row(tokenize):
    with pytest.raises(DataError, match="row 1, column 'margin': expected a finite number, got float inf"):
        tokenize([pair([1], [2], margin=1.0), pair([1], [2], margin=float("inf"))])


def test_a_bad_row_is_named_by_its_number_in_the_split(tokenize, text_rows):
    rows = text_rows * 120
    rows[1150] = {"prompt": None, "chosen": "", "rejected": "x"}
    for dataset in (Dataset.from_list(rows), Dataset.from_list(rows).to_iterable_dataset()):
        with pytest.raises(DataError, match="row 1150, column 'chosen': expected some text"):
            tokenize(dataset)


# rows that come tokenised


def test_tokenised_rows_are_left_as_they_are(tokenize):
    rows = [pair([5, 6, 7], [5, 8], margin=0.5, id="a"), pair([1], [2], margin=1.0, id="b")]
    assert tokenize(rows)[0] == rows
    assert tokenize([row | {"prompt": "x", "chosen": "y", "rejected": "z"} for row in rows])[0] == rows


@pytest.mark.parametrize("streaming", [False, True])
def test_the_old_column_names(tokenize, streaming):
    dataset = Dataset.from_list([{"chosen_input_ids": [1, 2], "rejected_input_ids": [3]}])
    with pytest.warns(FutureWarning, match="rename them to `chosen_ids` and `rejected_ids`"):
        rows, _ = tokenize(dataset.to_iterable_dataset() if streaming else dataset)
    assert rows == [pair([1, 2], [3])]


# streams


@pytest.mark.parametrize("known_columns", [True, False])
def test_a_stream_gives_what_a_dataset_gives(tokenize, text_rows, known_columns):
    rows = [row | {"margin": None, "id": n} for n, row in enumerate(text_rows * 20)]
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[150]["chosen"] *= 30
    rules = TokenizationRules(max_length=60)
    dataset = Dataset.from_list(rows)
    stream = dataset.to_iterable_dataset()
    if not known_columns:
        stream = stream.map(lambda row: row)
        assert stream.column_names is None
    kept, report = tokenize(dataset, rules)
    streamed, counted = tokenize(stream, rules)
    assert streamed == kept
    assert (report.streaming, counted.streaming) == (False, True)
    assert numbers(counted) == numbers(report)
    assert numbers(report)[:4] == (200, 198, 1, 1)


def test_a_stream_says_so_once_when_it_drops(tokenize, caplog):
    rows = ([pair([1], [1])] + [pair([1], [2])] * 99) * 3
    with caplog.at_level(logging.INFO, logger="plaudit"):
        _, report = tokenize(Dataset.from_list(rows).to_iterable_dataset())
    assert report.dropped == 3
    assert [message for message in caplog.messages if "dropped" in message] == [
        "train: pairs are dropped as the stream comes (1 with the same ids in chosen and rejected so far)"
    ]


def test_a_stream_that_is_mostly_overlong_is_stopped(tokenize):
    rules = TokenizationRules(max_length=1, overlong_max_fraction=0.5)
    few = [pair([1, 2], [3])] * 36 + [pair([1], [2])] * 4
    assert len(tokenize(Dataset.from_list(few).to_iterable_dataset(), rules)[0]) == 4  # too few to judge by
    with pytest.raises(DataError, match=r"91%.*overlong_max_fraction=0\.5"):
        tokenize(Dataset.from_list(few * 15).to_iterable_dataset(), rules)


# processes and the cache


def write(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    Dataset.from_list(rows).to_json(path)
    return load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))


def test_two_processes_give_what_one_gives(tokenize, text_rows):
    rows = text_rows * 6
    rows[7] = rows[7] | {"rejected": rows[7]["chosen"]}
    one, two = (tokenize(rows, num_proc=num_proc) for num_proc in (1, 2))
    assert two == one
    nothing_kept_first = [pair([1], [1])] * 4 + [pair([1], [2])] * 4
    assert tokenize(nothing_kept_first, num_proc=2)[0] == nothing_kept_first[4:]


def test_an_error_in_a_worker_arrives_as_it_is(tokenize, text_rows):
    rows = [*text_rows, {"prompt": "p", "chosen": None, "rejected": "x"}]
    with pytest.raises(DataError, match=r"row 10: expected the columns 'chosen' and 'rejected', but 'chosen' is"):
        tokenize(rows, num_proc=2)


def test_a_cached_result_gives_the_same_report(tokenize, tmp_path, monkeypatch, text_rows):
    rows = [*text_rows, {"prompt": "p", "chosen": "same", "rejected": "same"}]
    dataset = write(tmp_path, rows)
    first = tokenize(dataset)
    monkeypatch.setattr("plaudit.data.tokenize.render", None)  # it would fail where it is called
    assert tokenize(dataset) == first
    assert numbers(first[1])[:4] == (11, 10, 0, 1)


def test_the_cache_knows_the_rules_and_the_tokenizer(tokenize, tmp_path, new_tokenizer, text_rows):
    dataset = write(tmp_path, text_rows)
    plain, report = tokenize(dataset)
    longest = max(len(row["chosen_ids"]) for row in plain)
    assert tokenize(dataset, TokenizationRules(max_length=longest - 1))[1].overlong > 0
    with_bos, _ = tokenize(dataset, tokenizer=new_tokenizer(bos="<bos>"))
    assert with_bos != plain
    assert tokenize(dataset) == (plain, report)
