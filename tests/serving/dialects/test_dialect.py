import inspect

import pytest
from dialect_calls import scored
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from plaudit.serving.dialects.dialect import Body, Input, best_first, template_kwargs
from plaudit.serving.serving_errors import ServingError


def test_variables_of_a_template_pass():
    given = {"tools": [{"name": "search"}], "enable_thinking": False, "documents": [{"text": "x"}]}
    assert template_kwargs(given, "kwargs") == given
    assert template_kwargs(None, "kwargs") == {}


VARIABLES = {"tools", "documents", "add_generation_prompt", "continue_final_message"}
ARGUMENTS = [
    parameter.name
    for parameter in inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters.values()
    if parameter.kind is not parameter.VAR_KEYWORD and parameter.name not in VARIABLES | {"self"}
]


@pytest.mark.parametrize("name", [*ARGUMENTS, "messages"])
def test_arguments_of_rendering_itself_are_refused_and_so_is_a_template(name):
    with pytest.raises(ServingError, match=f"may not hold {name}") as raised:
        template_kwargs({name: "{{ 1 }}"}, "kwargs")
    assert (raised.value.failure, raised.value.param) == ("invalid", f"kwargs.{name}")


@pytest.mark.parametrize("tools", ["search", ["search"], {"name": "search"}])
def test_tools_are_objects(tools):
    with pytest.raises(ServingError, match="list of objects"):
        template_kwargs({"tools": tools}, "kwargs")


class OneInput(Body):
    input: Input


@pytest.mark.parametrize("value", ["", "text", ["a", "b"], [1, 2], [[1, 2], [3]]])
def test_an_input_is_a_text_or_ids_or_a_list_of_either(value):
    assert OneInput.model_validate({"input": value}).input == value


@pytest.mark.parametrize("value", [None, 3, [], [[]], [True], [-1], [1.0], ["a", 1], [[1], "a"], [["a"]], {"a": 1}])
def test_any_other_input_is_refused_and_not_quoted(value):
    with pytest.raises(ValidationError) as raised:
        OneInput.model_validate({"input": value})
    assert "input_value" not in str(raised.value)


def test_a_long_list_of_wrong_elements_is_refused_at_the_first():
    with pytest.raises(ValidationError) as raised:
        OneInput.model_validate({"input": [None] * 10_000})
    assert raised.value.error_count() < 10


def test_the_order_follows_the_raw_rewards_where_the_sigmoid_saturates():
    tied = scored([40.0, 41.0, 42.0], "sigmoid")
    assert tied.values == [1.0, 1.0, 1.0]
    assert best_first(tied) == [2, 1, 0]


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3).map(float), min_size=1), st.none() | st.integers(1, 9))
def test_equal_rewards_keep_the_order_given(rewards, top_n):
    order = best_first(scored(rewards), top_n)
    assert order == sorted(range(len(rewards)), key=lambda n: (-rewards[n], n))[:top_n]
