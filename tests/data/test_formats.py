import json
import math

import pytest
from chat_rows import reply, user
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from plaudit.data.formats import ParsedRow, parse_row
from plaudit.errors import DataError

CHAT = {"prompt": [user("2+2?")], "chosen": [reply("4.")], "rejected": [reply("5.")]}
TEXT = {"prompt": "2+2?", "chosen": " 4.", "rejected": " 5."}
CHAT_EXAMPLE, TEXT_EXAMPLE, GROUP_EXAMPLE = '"content": "4."', '"chosen": " 4."', '"ranks": [0, 1, 0]'


def pair(chosen, rejected, **annotations):
    return ParsedRow([chosen, rejected], ["chosen", "rejected"], [0.0, 1.0], **annotations)


def group(sequences, ranks, **annotations):
    return ParsedRow(sequences, [f"completions[{n}]" for n in range(len(sequences))], ranks, **annotations)


def without_prompt(row):
    return {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}


# the shapes


@pytest.mark.parametrize("row", [TEXT, without_prompt(TEXT), without_prompt(TEXT) | {"prompt": None}])
def test_standard_rows_become_whole_texts(row):
    assert parse_row(row, 0) == pair("2+2? 4.", "2+2? 5.")


@pytest.mark.parametrize("row", [CHAT, without_prompt(CHAT), without_prompt(CHAT) | {"prompt": None}])
def test_conversational_rows_become_whole_conversations(row):
    assert parse_row(row, 0) == pair([user("2+2?"), reply("4.")], [user("2+2?"), reply("5.")])


@given(prompt=st.text(), chosen=st.text(min_size=1), rejected=st.text(min_size=1))
def test_an_explicit_prompt_is_the_same_as_an_implicit_one(prompt, chosen, rejected):
    text = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    assert parse_row(text, 0) == parse_row(without_prompt(text), 0)
    chat = {"prompt": [user(prompt)], "chosen": [reply(chosen)], "rejected": [reply(rejected)]}
    assert parse_row(chat, 0) == parse_row(without_prompt(chat), 0)


def test_content_may_be_text_parts_or_missing_beside_a_tool_call():
    parts = [{"type": "text", "text": "2+2?"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    row = {"prompt": [user(parts), call], "chosen": [reply("4.")], "rejected": [reply("5.")]}
    assert parse_row(row, 0).sequences[0] == [user(parts), call, reply("4.")]


def test_keys_that_arrow_filled_with_none_are_not_there():
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    other = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "g", "arguments": {"b": 2}}}]}
    rows = [
        {"prompt": [user("x"), call], "chosen": [reply("1")], "rejected": [reply("2")], "tools": [{"name": "f"}]},
        {"prompt": [other], "chosen": [reply("1")], "rejected": [reply("2")], "tools": [{"type": "t"}]},
        CHAT | {"chat_template_kwargs": {"thinking": True}, "margin": 1.0},
    ]
    stored = list(Dataset.from_list([dict.fromkeys(rows[2]) | row for row in rows]))
    assert stored[1]["prompt"][0]["tool_calls"][0]["function"]["arguments"] == {"a": None, "b": 2}
    assert stored[2]["tools"] is None
    first, second, third = (parse_row(row, index) for index, row in enumerate(stored))
    assert first.sequences[0] == [user("x"), call, reply("1")]
    assert first.template_options == {"tools": [{"name": "f"}]}
    assert second.sequences[0] == [other, reply("1")]
    assert second.template_options == {"tools": [{"type": "t"}]}
    assert third == pair(
        [user("2+2?"), reply("4.")], [user("2+2?"), reply("5.")], margin=1.0, template_options={"thinking": True}
    )


# tools and template keyword arguments


TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]


@pytest.mark.parametrize(
    ("tools", "options"),
    [(TOOLS, {"tools": TOOLS}), (json.dumps(TOOLS), {"tools": TOOLS}), ("[]", {}), ("null", {}), ([], {}), (None, {})],
)
def test_tools_come_as_a_list_or_as_json(tools, options):
    assert parse_row(CHAT | {"tools": tools}, 0).template_options == options


def test_template_keyword_arguments_go_with_the_tools():
    row = CHAT | {"tools": TOOLS, "chat_template_kwargs": {"enable_thinking": False, "unset": None}}
    assert parse_row(row, 0).template_options == {"tools": TOOLS, "enable_thinking": False}


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("tools", "[{not json", "a list of tools or a JSON string of one"),
        ("tools", '{"name": "add"}', "a list of tools or a JSON string of one"),
        ("tools", 3, "a list of tools or a JSON string of one"),
        ("chat_template_kwargs", ["thinking"], "a dict"),
    ],
)
def test_template_options_of_another_kind(column, value, expected):
    with pytest.raises(DataError) as error:
        parse_row(CHAT | {column: value}, 5)
    for part in ("row 5", f"'{column}'", f"expected {expected}", "Example of the right shape: "):
        assert part in str(error.value)


# ranked groups


def test_a_group_keeps_its_responses_in_their_order():
    row = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 0, 1], "tools": TOOLS, "weight": 2}
    ranking = group(["pa", "pb", "pc"], [1.0, 0.0, 1.0], weight=2.0, template_options={"tools": TOOLS})
    assert parse_row(row, 0) == ranking
    assert parse_row(row | {"scores": None}, 0) == ranking
    chat = {"prompt": [user("p")], "completions": [[reply("a")], [reply("b")]], "ranks": [1.5, -1]}
    assert parse_row(chat, 0) == group([[user("p"), reply("a")], [user("p"), reply("b")]], [1.5, -1.0])
    assert parse_row({"completions": ["a", "b"], "ranks": [0, 0], "weight": None}, 0) == group(["a", "b"], [0.0, 0.0])


def test_the_ranks_of_scores_are_dense_with_the_highest_first():
    row = {"completions": ["a", "b", "c", "d"], "scores": [0.5, 9, 0.5, -1]}
    ranking = group(["a", "b", "c", "d"], [1.0, 0.0, 1.0, 2.0], scores=[0.5, 9.0, 0.5, -1.0])
    assert parse_row(row, 0) == parse_row(row | {"ranks": None}, 0) == ranking


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"completions": None}, ["'completions'", "expected a list of two or more responses", "NoneType"]),
        ({"completions": ["a"]}, ["'completions'", "expected a list of two or more responses", "['a']"]),
        ({"completions": "ab"}, ["'completions'", "expected a list of two or more responses", "str 'ab'"]),
        ({"ranks": [0]}, ["'ranks'", "expected one number for each of the 2 completions", "[0]"]),
        ({"ranks": None}, ["'ranks'", "expected one number for each of the 2 completions", "NoneType"]),
        ({"ranks": [0, "1"]}, ["'ranks'", "expected one number", "'1'"]),
        ({"ranks": [0, math.nan]}, ["'ranks'", "expected one number", "nan"]),
        ({"ranks": [True, False]}, ["'ranks'", "expected one number", "True"]),
        ({"ranks": None, "scores": [1]}, ["'scores'", "expected one number for each of the 2 completions", "[1]"]),
        ({"ranks": None, "scores": [1, 2, 3]}, ["'scores'", "expected one number", "the highest is best"]),
        ({"ranks": None, "scores": [1, None]}, ["'scores'", "expected one number", "None"]),
        ({"ranks": None, "scores": [1, math.inf]}, ["'scores'", "expected one number", "inf"]),
        ({"ranks": None, "scores": 0.5}, ["'scores'", "expected one number", "float 0.5"]),
        ({"completions": ["a"], "ranks": None, "scores": [1]}, ["'completions'", "two or more responses"]),
        ({"completions": ["a", [reply("b")]]}, ["'completions[0]' is a string", "'completions[1]' is a list"]),
        ({"completions": [[reply("a")], [reply("b")]]}, ["'prompt' is a string", "'completions[1]' is a list"]),
        ({"completions": ["a", 3]}, ["'completions[1]'", "expected a string or a list of messages", "int 3"]),
    ],
)
def test_malformed_groups(change, parts):
    with pytest.raises(DataError) as error:
        parse_row({"prompt": "p", "completions": ["a", "b"], "ranks": [0, 1]} | change, 12)
    for part in ("row 12", "of the right shape: {", *parts):
        assert part in str(error.value)


def test_the_annotations_of_a_pair_are_part_of_it():
    said = {"margin": 1, "weight": 2, "label": 0.75, "tie": False}
    assert parse_row(TEXT | said, 0) == pair("2+2? 4.", "2+2? 5.", margin=1.0, weight=2.0, label=0.75)
    assert parse_row(TEXT | dict.fromkeys(said), 0) == parse_row(TEXT, 0)
    tied = parse_row(TEXT | {"weight": 0, "tie": True}, 0)
    assert tied == ParsedRow(["2+2? 4.", "2+2? 5."], ["chosen", "rejected"], [0.0, 0.0], weight=0.0, tie=True)


def test_a_row_is_a_pair_or_a_group_and_not_both():
    row = {"prompt": "p", "completions": ["a", "b"], "ranks": [0, 1]}
    assert parse_row(row | {"chosen": None, "rejected": None}, 0) == group(["pa", "pb"], [0.0, 1.0])
    assert parse_row(TEXT | {"completions": None, "ranks": None}, 0) == parse_row(TEXT, 0)
    with pytest.raises(DataError, match=r"row 3: expected a pair .* or a ranked group .* has both"):
        parse_row(TEXT | row, 3)


# malformed pairs

MALFORMED = {
    "a missing column": (
        {"prompt": "p", "chosen": "a", "reject": "b"},
        [
            "'rejected' is missing",
            "has values in 'chosen', 'prompt', 'reject'",
            "dataset_format",
            TEXT_EXAMPLE,
            CHAT_EXAMPLE,
        ],
    ),
    "both columns missing": ({"text": "x"}, ["'chosen', 'rejected' are missing", "has values in 'text'", TEXT_EXAMPLE]),
    "no columns": ({}, ["'chosen', 'rejected' are missing", "no columns", TEXT_EXAMPLE]),
    "a null": (
        TEXT | {"rejected": None},
        ["'rejected' is missing or empty; the row has values in 'chosen'", "complete or remove this one", TEXT_EXAMPLE],
    ),
    "chosen and rejected of different kinds": (
        {"chosen": "a", "rejected": [reply("b")]},
        ["all of one kind", "'chosen' is a string", "'rejected' is a list of messages", TEXT_EXAMPLE, CHAT_EXAMPLE],
    ),
    "a prompt of another kind": (
        CHAT | {"prompt": "2+2?"},
        ["all of one kind", "'prompt' is a string", "'chosen' is a list of messages", CHAT_EXAMPLE],
    ),
    "neither text nor messages": (
        TEXT | {"chosen": 4},
        ["'chosen'", "expected a string or a list of messages", "got int 4", TEXT_EXAMPLE, CHAT_EXAMPLE],
    ),
    "an empty list": (CHAT | {"rejected": []}, ["'rejected'", "at least one message", "got list []", CHAT_EXAMPLE]),
    "an empty prompt": (CHAT | {"prompt": []}, ["'prompt'", "at least one message", "got list []", CHAT_EXAMPLE]),
    "no text at all": ({"chosen": "", "rejected": "b"}, ["'chosen'", "expected some text", "str ''", TEXT_EXAMPLE]),
    "the user's word last": (
        CHAT | {"chosen": [reply("4."), user("Thanks.")]},
        ["'chosen'", "expected the last message to be from the assistant", "'role': 'user'", CHAT_EXAMPLE],
    ),
    "a message that is text": (
        CHAT | {"chosen": ["4."]},
        ["'chosen', message 0", "expected a dict with 'role' and 'content'", "str '4.'", CHAT_EXAMPLE],
    ),
    "a message without a role": (
        CHAT | {"prompt": [user("hi"), {"content": "x"}]},
        ["'prompt', message 1", "expected a dict with 'role' and 'content'", "{'content': 'x'}", CHAT_EXAMPLE],
    ),
    "a message without content": (
        CHAT | {"rejected": [{"role": "assistant"}]},
        ["'rejected', message 0", "expected a dict with 'role' and 'content'", "{'role': 'assistant'}", CHAT_EXAMPLE],
    ),
    "null content": (
        CHAT | {"rejected": [reply(None)]},
        ["'rejected', message 0", "expected 'content' to be text", "NoneType None", CHAT_EXAMPLE],
    ),
    "an image": (
        CHAT | {"prompt": [user([{"type": "text", "text": "x"}, {"type": "image", "url": "y"}])]},
        ["'prompt', message 0", "expected 'content' to be text", "images or other media", "'image'", CHAT_EXAMPLE],
    ),
}


@pytest.mark.parametrize(("row", "parts"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_row_is_named_with_its_column_and_an_example(row, parts):
    with pytest.raises(DataError) as error:
        parse_row(row, 41)
    for part in ("row 41", "expected", "of the right shape: ", *parts):
        assert part in str(error.value)


def test_what_came_is_shown_but_not_at_length():
    with pytest.raises(DataError) as error:
        parse_row(CHAT | {"prompt": [{"content": "x" * 10_000}]}, 0)
    assert len(str(error.value)) < 500


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type"]), inner, max_size=3)
    ),
    max_leaves=8,
)
names = ["prompt", "chosen", "rejected", "tools", "chat_template_kwargs", "completions", "ranks", "scores"]
names += ["margin", "weight", "label", "tie"]


@given(row=st.dictionaries(st.sampled_from(names), anything))
def test_any_row_parses_or_names_itself(row):
    try:
        parsed = isinstance(parse_row(row, 99), ParsedRow)
    except DataError as error:
        parsed = str(error).startswith("row 99")
    assert parsed
