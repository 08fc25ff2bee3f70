import json
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from plaudit.serving.json_body import read_json, validate
from plaudit.serving.server_limits import ServerLimits
from plaudit.serving.serving_errors import ServingError

LIMITS = ServerLimits(max_json_depth=4, max_json_values=50, max_string_length=20, max_items=1)


def refusal(data, limits=LIMITS):
    with pytest.raises(ServingError) as caught:
        read_json(data, limits)
    assert caught.value.failure == "invalid"
    return caught.value.message


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -1, 1.5, 10**19 - 1, "", "a\0b", "𐀀", [], {}, [[[[1]]]], {"a": {"b": {"c": [2]}}}, list(range(40))],
)
def test_ordinary_values_are_read(value):
    assert read_json(json.dumps(value).encode(), LIMITS) == value


def test_lists_and_objects_of_one_item_may_be_longer_than_the_number_of_items():
    value = {"messages": [{"role": "user", "content": "a"}] * 6} | dict.fromkeys("bcdef")
    assert read_json(json.dumps(value).encode(), LIMITS) == value


def test_the_last_of_two_equal_keys_counts():
    assert read_json(b'{"a": 1, "a": 2}', LIMITS) == {"a": 2}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[1,]", b"1 2", b"'a'", b'"a\nb"', b"\xef\xbb\xbf{}",
        b"NaN", b"[NaN]", b"Infinity", b"[-Infinity]",
        b'"\xff"', b'"\xed\xa0\x80"', b'"\\ud800"', b'"\\udc00"', b'"\\udc00\\ud800"', b'{"\\ud800": 1}',
        b"9" * 5000, b"[" * 300 + b"]" * 300, b"[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused_with_a_position(data):
    assert refusal(data, ServerLimits()).startswith("The body is not JSON: ")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"1" + b"0" * 19, "more than 19 digits"),
        (b"[1, -1" + b"0" * 19 + b"]", "more than 19 digits"),
        (b'[1, "a", -1' + b"0" * 19 + b"]", "more than 19 digits"),
        (b"1e999", "too large for a float"),
        (b'{"a": [-1e999]}', "too large for a float"),
        (b"1" + b"0" * 400 + b".0", "too large for a float"),
        (b"[[[[[1]]]]]", "more than 4 deep"),
        (b'{"a":' * 5 + b"1" + b"}" * 5, "more than 4 deep"),
        (b'"' + b"x" * 21 + b'"', "more than 20 characters"),
        (b'{"' + b"x" * 21 + b'": 1}', "more than 20 characters"),
        (b"[" + b"{}," * 60 + b"{}]", "more than 50 values"),
    ],
)
def test_what_is_beyond_a_limit_is_refused(data, reason):
    assert reason in refusal(data)


def test_commas_and_brackets_inside_a_string_are_no_values():
    text = ',[{\\"' * 100
    assert read_json(json.dumps(text).encode(), ServerLimits(max_json_values=50)) == text


def test_values_are_counted_in_linear_time_where_a_string_never_ends():
    assert "more than 50 values" in refusal(b"[" * 60 + b'"' + b'\\"' * 500_000)


# Validation


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["user", "assistant"]
    content: str


class Conversation(BaseModel):
    model_config = ConfigDict(extra="forbid")
    messages: list[Message]


class Pair(BaseModel):
    model_config = ConfigDict(extra="forbid")
    prompt: str
    response: str


def fail(value):
    raise ValueError(f"cannot use {value}")


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    items: list[Pair | Conversation] = []
    input: str | list[str] | list[int] | list[list[int]] = ""
    top_n: Annotated[int, Field(gt=0)] | None = None
    weights: dict[str, int] = {}
    checked: Annotated[str, AfterValidator(fail)] | None = None
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None
    kwargs: dict[str, Any] = {}


def validation_error(value):
    with pytest.raises(ServingError) as caught:
        validate(Body, value)
    assert caught.value.failure == "invalid"
    return caught.value


def test_a_valid_body_becomes_an_object_of_the_model():
    body = validate(Body, {"items": [{"prompt": "a", "response": "b"}], "input": [1, 2], "top_n": 3})
    assert body.items == [Pair(prompt="a", response="b")]
    assert body.input == [1, 2]


@pytest.mark.parametrize(
    ("value", "param", "message"),
    [
        ([], None, "The body: Input should be an object."),
        ({"items": 3}, "items", "items: Input should be a valid list."),
        ({"items": [{"prompt": "a"}]}, "items[0].response", "items[0].response: Field required."),
        ({"items": [{"prompt": "a", "response": 2}]}, "items[0].response", None),
        (
            {"items": [{"prompt": "", "response": "", "secret": 1}]}, "items[0]",
            "items[0]: A field is not known here; expected only: prompt, response.",
        ),
        (
            {"items": [{"messages": [{"role": "user", "content": "", "secret": 1}]}]}, "items[0].messages[0]",
            "items[0].messages[0]: A field is not known here; expected only: role, content.",
        ),
        ({"items": [{"messages": [{"role": "user", "content": 1}]}]}, "items[0].messages[0].content", None),
        ({"input": ["a", 3]}, "input[1]", "input[1]: Input should be a valid string."),
        ({"input": 3.5}, "input", "input: Input should be a valid string, or Input should be a valid list."),
        ({"top_n": 0}, "top_n", "top_n: Input should be greater than 0."),
        (
            {"secret": 1}, None,
            "The body: A field is not known here; "
            "expected only: items, input, top_n, weights, checked, pet, kwargs.",
        ),
        ({"weights": {"secret": "x"}}, "weights", None),
        ({"checked": "secret"}, "checked", "checked: The value is not valid here."),
        ({"pet": {"kind": "secret"}}, "pet", "pet: The value is not valid here."),
    ],
)  # fmt: skip
def test_an_error_names_the_declared_field_and_what_was_expected(value, param, message):
    error = validation_error(value)
    assert error.param == param
    assert message in (None, error.message)
    assert "secret" not in error.message


def test_very_many_errors_are_not_listed_one_by_one():
    class Wide(BaseModel):
        values: list[int]

    with pytest.raises(ServingError, match="another shape"):
        validate(Wide, {"values": ["a"] * 2000})


MARKER = "Zq7marker"
names = st.sampled_from([
    MARKER, "items", "prompt", "response", "messages", "role", "content", "input", "top_n", "weights", "checked", "pet",
    "kind", "kwargs",
])  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.just(MARKER) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(names, values, max_size=5) | values)
def test_no_error_repeats_what_the_request_holds(value):
    error = error_of(validate, Body, value)
    assert error is None or (MARKER not in f"{error} {error.message} {error.param}" and len(error.message) < 400)


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(data):
    error = error_of(read_json, data, LIMITS)
    assert error is None or error.failure == "invalid"


def error_of(function, *arguments):
    try:
        function(*arguments)
    except ServingError as error:
        return error
    return None


def test_a_list_far_longer_than_the_items_of_a_request_is_refused_before_it_is_validated():
    limits = ServerLimits(max_items=10)
    assert len(read_json(b"[" + b",".join([b'"a"'] * 1000) + b"]", limits)) == 1000
    with pytest.raises(ServingError, match="a request may have 10 items"):
        read_json(b"[" + b",".join([b'"a"'] * 1001) + b"]", limits)
    assert len(read_json(b"[" + b",".join([b"7"] * 5000) + b"]", limits)) == 5000  # token ids
