"""The form of a split: found from its columns, and held against every row."""

import datasets
import pytest
from datasets import IterableDataset, List, Value

from plaudit.data.formats import ParsedRow
from plaudit.data.schema import ColumnSchema
from plaudit.data.tokenize import TokenizationRules, tokenize_dataset
from plaudit.errors import DataError


def group(ids, ranks, **columns):
    return {"sequence_ids": [list(one) for one in ids], "ranks": [float(rank) for rank in ranks]} | columns


def pair(chosen, rejected, **columns):
    return {"chosen_ids": list(chosen), "rejected_ids": list(rejected)} | columns


# from columns to a form


@pytest.mark.parametrize(
    ("columns", "groups", "tokenised", "annotated"),
    [
        (["chosen", "rejected"], False, False, ()),
        (["prompt", "chosen", "rejected", "tie", "margin", "scores"], False, False, ("margin", "tie")),
        (["completions", "ranks", "weight"], True, False, ("ranks", "weight")),
        (["completions", "scores", "chosen", "rejected", "label"], True, False, ("ranks", "scores")),
        (["chosen_ids", "rejected_ids", "completions", "label"], False, True, ("label",)),
        (["sequence_ids", "scores"], True, True, ("ranks", "scores")),
    ],
)
def test_the_columns_of_a_split_decide_its_form(columns, groups, tokenised, annotated):
    assert ColumnSchema.of(columns, ties=True) == ColumnSchema(groups, tokenised, annotated, ties=groups)


def test_token_ids_of_pairs_and_of_groups_at_once_are_an_error():
    with pytest.raises(DataError, match="'chosen_ids'.*'sequence_ids'.*has both"):
        ColumnSchema.of(["sequence_ids", "ranks", "chosen_ids", "rejected_ids"])


def test_every_column_that_is_made_has_a_type():
    ids, number = List(Value("int32")), Value("float64")
    common = {
        "row_number": Value("int64"), "prompt_key": Value("int64"), "num_tokens": Value("int32"),
        "sequence_lengths": ids,
    }  # fmt: skip
    pairs = ColumnSchema.of(["chosen", "rejected", "margin", "tie"]).features
    assert pairs == common | {"chosen_ids": ids, "rejected_ids": ids, "margin": number, "tie": Value("bool")}
    groups = common | {"sequence_ids": List(ids), "ranks": List(number), "comparisons": List(ids), "weight": number}
    assert ColumnSchema.of(["completions", "weight"]).features == groups
    assert ColumnSchema.of(["completions", "weight"], ties=True).features == groups | {"ties": List(ids)}


def test_columns_of_the_user_pass_through():
    ours = ["prompt", "chosen", "rejected", "tools", "label", "row_number", "num_tokens"]
    schema = ColumnSchema.of(ours)
    assert list(schema.passed_through(dict.fromkeys([*ours, "source", "scores", "ties"]))) == [
        "source",
        "scores",
        "ties",
    ]
    ours = ["completions", "scores", "chosen", "rejected", "ties", "comparisons", "prompt_key"]
    assert list(ColumnSchema.of(ours).passed_through(dict.fromkeys([*ours, "source"]))) == ["source"]


# rows of the form


def test_a_row_is_parsed_by_the_form_of_its_split():
    ids = ParsedRow([[1, 2], [3]], ["chosen", "rejected"], [0.0, 1.0], margin=0.5)
    assert ColumnSchema.of(["chosen_ids", "rejected_ids", "margin"]).parse(pair([1, 2], [3], margin=0.5), 0) == ids
    names = ["sequence_ids[0]", "sequence_ids[1]"]
    assert ColumnSchema.of(["sequence_ids", "ranks"]).parse(group([[1], [2]], [1, 0]), 0) == ParsedRow(
        [[1], [2]], names, [1.0, 0.0]
    )
    assert ColumnSchema.of(["chosen", "rejected"]).parse({"chosen": "a", "rejected": "b"}, 0).sequences == ["a", "b"]


MIXED = {"prompt": None, "chosen": None, "rejected": None, "completions": None, "ranks": None}


@pytest.mark.parametrize(("column", "value"), [("margin", 0.5), ("label", 0.5), ("tie", True)])
def test_annotations_of_pairs_are_refused_in_a_split_of_groups(tokenize, kind, column, value):
    ranked = MIXED | {"completions": ["a", "b"], "ranks": [1, 0], column: None}
    with pytest.raises(DataError, match=rf"row 1, column '{column}': .* split of their own"):
        tokenize([ranked, MIXED | {"chosen": "dog", "rejected": "fox", column: value}], kind=kind)
    with pytest.raises(DataError, match=rf"row 0, column '{column}': .*to pair rows and this is a ranked group"):
        tokenize([ranked | {column: value}], kind=kind)


@pytest.mark.parametrize("late", [{"weight": 2.0}, {"margin": 1.0}, {"tie": True}, {"label": 0.5}])
@pytest.mark.parametrize("row", [{"chosen": "a", "rejected": "b"}, pair([1], [2])])
def test_a_column_that_the_first_row_of_a_stream_did_not_have_is_an_error(tokenize, row, late):
    stream = IterableDataset.from_generator(lambda: iter([row, row, row | late])).map(dict)
    (column,) = late
    with pytest.raises(DataError, match=rf"row 2, column '{column}': .*first row of the stream has no such"):
        tokenize(stream)


def test_a_group_after_the_first_row_of_a_stream_of_pairs_is_an_error(tokenize):
    rows = [{"chosen": "a", "rejected": "b"}, {"completions": ["a", "b"], "ranks": [0, 1]}]
    with pytest.raises(DataError, match=r"row 1, column 'completions': .*first row of the stream has no such column"):
        tokenize(IterableDataset.from_generator(lambda: iter(rows)).map(dict))


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
def test_a_malformed_tokenised_group_is_named_with_row_and_column(change, message):
    row = group([[1], [2]], [0, 1]) | change
    with pytest.raises(DataError, match=message):
        ColumnSchema.of(row).parse(row, 1)


@pytest.mark.parametrize(
    ("ids", "got"),
    [([], r"\[\]"), (None, "None"), ([1, None], "None"), ([0.5], "0.5"), ("dog", "'dog'"), ([[1]], r"\[\[1\]\]")],
)
@pytest.mark.parametrize("column", ["chosen_ids", "rejected_ids"])
def test_malformed_token_ids_of_a_pair_are_named_with_row_and_column(column, ids, got):
    row = pair([1], [2]) | {column: ids}
    expected = rf"row 3, column '{column}': expected a list .*token ids, got .*{got}.*right shape: .*chosen_ids"
    with pytest.raises(DataError, match=expected):
        ColumnSchema.of(row).parse(row, 3)


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({"weight": -1.0}, "column 'weight': expected .*of 0 or more.* got .*-1.0"),
        ({"label": 1.5}, "column 'label': expected .*from 0 to 1.* got .*1.5"),
        ({"tie": 1}, "column 'tie': expected true.* got .*1"),
        ({"margin": float("inf")}, "column 'margin': expected a finite number, got float inf"),
        ({"tie": True, "label": 0.5}, "columns 'tie' and 'label'"),
    ],
)
def test_a_malformed_annotation_of_a_tokenised_pair_is_named(annotations, message):
    row = pair([1], [2], **annotations)
    with pytest.raises(DataError, match=f"row 0, {message}"):
        ColumnSchema.of(row).parse(row, 0)


def test_a_first_batch_of_which_nothing_is_kept_does_not_change_the_types(shared_tokenizer):
    tied = [{"completions": ["a", "b"], "ranks": [0, 0], "scores": None, "weight": None}] * 1000
    last = {"completions": ["a", "b"], "ranks": None, "scores": [1, 0], "weight": 3}
    for rows in ([*tied, last], [pair([1, 2], [1, 2], margin=None)] * 1000 + [pair([1, 2], [3], margin=None)]):
        dataset = datasets.Dataset.from_list(rows)
        tokenised, _ = tokenize_dataset(dataset, shared_tokenizer, TokenizationRules(), split="train")
        assert tokenised.features == ColumnSchema.of(rows[0]).features
        assert tokenised["row_number"][:] == [1000]
