"""Rows in, sequences to score out, without a model."""

import pytest

from plaudit.data.reader import Unreadable
from plaudit.errors import ConfigError, DataError
from plaudit.scoring.reward_columns import KINDS, RewardColumns, parse_row, row_with_rewards

PLAIN = RewardColumns()
ASKED = [{"role": "user", "content": "Is it?"}]
ANSWERS = [[{"role": "assistant", "content": text}] for text in (" Yes.", " No.")]
ROWS = {
    "pair": ({"prompt": "Is it?", "chosen": " Yes.", "rejected": " No."}, ["Is it? Yes.", "Is it? No."]),
    "pair without a prompt": ({"chosen": "Yes.", "rejected": "No."}, ["Yes.", "No."]),
    "group": ({"prompt": "Is it?", "completions": [" Yes.", " No."]}, ["Is it? Yes.", "Is it? No."]),
    "group without a prompt": ({"completions": ["Yes."]}, ["Yes."]),
    "completion": ({"prompt": "Is it?", "completion": " Yes."}, ["Is it? Yes."]),
    "messages": ({"messages": ASKED + ANSWERS[0]}, [ASKED + ANSWERS[0]]),
    "text": ({"text": "Is it? Yes."}, ["Is it? Yes."]),
}


def scored(row, rewards, columns=PLAIN):
    return row_with_rewards(parse_row(row, 0, columns), rewards, columns)


@pytest.mark.parametrize("name", ROWS)
def test_each_kind_is_known_by_its_columns_and_keeps_them(name):
    row, sequences = ROWS[name]
    row |= {"id": 7, "ranks": None}
    parsed = parse_row(row, 3, PLAIN)
    assert (parsed.number, parsed.kind, parsed.sequences) == (3, name.split()[0], sequences)
    assert scored(row, [0.5, 1.5][: len(sequences)]).items() >= row.items()


def test_every_kind_is_tried_above():
    assert {name.split()[0] for name in ROWS} == set(KINDS)


@pytest.mark.parametrize(
    ("kind", "rewards"),
    [
        ("pair", {"chosen_r": 0.5, "rejected_r": 1.5}),
        ("group", {"r": [0.5, 1.5]}),
        ("completion", {"r": 0.5}),
        ("messages", {"r": 0.5}),
        ("text", {"r": 0.5}),
    ],
)
def test_rewards_come_behind_the_columns_of_the_row(kind, rewards):
    row, sequences = ROWS[kind]
    written = scored(row, [0.5, 1.5][: len(sequences)], RewardColumns(reward_column="r"))
    assert written == row | rewards
    assert list(written) == [*row, *rewards]


def test_deviations_come_behind_the_rewards():
    named = RewardColumns(reward_column="r")
    for kind, stds in (
        ("pair", {"chosen_r_std": 0.1, "rejected_r_std": 0.2}), ("group", {"r_std": [0.1, 0.2]}),
        ("text", {"r_std": 0.1}),
    ):  # fmt: skip
        row, sequences = ROWS[kind]
        count = len(sequences)
        parsed = parse_row(row, 0, named, with_std=True)
        written = row_with_rewards(parsed, [0.5, 1.5][:count], named, [0.1, 0.2][:count])
        assert list(written)[-len(stds) :] == list(stds)
        assert written.items() >= stds.items()


def test_the_best_completion_takes_the_place_of_the_group():
    row = {"id": 7, "prompt": "Is it?", "completions": [" Yes.", " No.", " Thank you."]}
    assert scored(row, [0.5, 1.5, 1.5], RewardColumns(best_of=True)) == {
        "id": 7, "prompt": "Is it?", "completion": " No.", "reward": 1.5,  # the first of equals
    }  # fmt: skip


def test_sequences_are_named_by_row_and_column():
    assert parse_row(ROWS["pair"][0], 3, PLAIN).names == ["row 3, column 'chosen'", "row 3, column 'rejected'"]
    assert parse_row(ROWS["group"][0], 3, PLAIN).names[1] == "row 3, column 'completions[1]'"


def test_the_options_of_the_chat_template_are_read():
    row = {"messages": ASKED + ANSWERS[0], "tools": [{"name": "add"}]}
    assert parse_row(row, 0, PLAIN).template_options == {"tools": [{"name": "add"}]}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASKED, "completions": [" Yes.", " No."]},
        {"prompt": ASKED, "completions": ANSWERS},
        {"prompt": "Is it?", "completions": [ANSWERS[0], " No."]},
    ],
)
def test_a_string_beside_messages_is_a_message(row):
    parsed = parse_row(row, 0, PLAIN)
    assert parsed.sequences == [ASKED + answer for answer in ANSWERS]
    assert parsed.row is row


def test_a_pair_is_not_read_so_generously():
    with pytest.raises(DataError, match="row 0: expected all of one kind"):
        parse_row({"prompt": ASKED, "chosen": ANSWERS[0], "rejected": " No."}, 0, PLAIN)


def test_of_several_kinds_one_must_be_chosen():
    row = {"text": "Is it? Yes.", "prompt": "Is it?", "completion": " No."}
    expected = "row 0: expected one thing to score, got completion, text. Choose with --kind completion"
    with pytest.raises(DataError, match=expected):
        parse_row(row, 0, PLAIN)
    assert parse_row(row, 0, RewardColumns("text")).sequences == ["Is it? Yes."]
    assert parse_row(row, 0, RewardColumns("completion")).sequences == ["Is it? No."]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (Unreadable("line 2 is not valid JSON", "{"), "row 4: line 2 is not valid JSON"),
        ({"chosen": "Is it?"}, "row 4: expected .* the row has values in 'chosen'"),
        ({"input_ids": [1, 2]}, "'input_ids' may be token ids, which only training takes"),
        ({"text": ""}, "row 4.*expected some text"),
        ({"prompt": ASKED, "completion": 5}, "row 4.*expected a string or a list of messages"),
        ({"messages": ASKED}, "row 4.*the last message to be from the assistant"),
        ({"completions": []}, "row 4, column 'completions': expected one or more in a list, got \\[\\]"),
        ({"completions": "Yes."}, "row 4, column 'completions': expected one or more in a list, got 'Yes.'"),
        ({"prompt": "Is it?", "chosen": ANSWERS[0], "rejected": ""}, "row 4: expected all of one kind"),
    ],
)
def test_a_row_without_anything_to_score_is_an_error_that_names_it(row, reason):
    with pytest.raises(DataError, match=reason):
        parse_row(row, 4, PLAIN)


def test_rows_of_another_kind_than_was_asked_for_are_errors():
    with pytest.raises(DataError, match="row 4: expected 'messages'; the row has values in 'text'"):
        parse_row({"text": "Yes."}, 4, RewardColumns("messages"))
    with pytest.raises(DataError, match="row 4: --best_of expected a group .* got a row of kind text"):
        parse_row({"text": "Yes."}, 4, RewardColumns(best_of=True))


@pytest.mark.parametrize(
    ("row", "columns", "reason"),
    [
        ({"text": "Yes.", "reward": 1}, PLAIN, "row 0 has a column 'reward' already. .* --reward_column"),
        ({"chosen": "a", "rejected": "b", "rejected_r": 1}, RewardColumns(reward_column="r"), "column 'rejected_r'"),
        ({"completions": ["a"], "completion": "b"}, RewardColumns("group", best_of=True), "a column 'completion'"),
    ],
)
def test_no_column_is_overwritten(row, columns, reason):
    with pytest.raises(ConfigError, match=reason):
        parse_row(row, 0, columns)


def test_an_empty_column_may_become_the_column_of_rewards():
    assert scored({"text": "Yes.", "reward": None}, [0.5]) == {"text": "Yes.", "reward": 0.5}
