import pytest
from dialect_calls import ask, read
from pydantic import ValidationError

from plaudit.serving.dialects.huggingface import HUGGINGFACE
from plaudit.serving.scoring_request import Text
from plaudit.serving.serving_errors import ServingError


def test_a_text_has_a_list_of_its_labels():
    answer = ask(HUGGINGFACE, "/", {"inputs": "a", "parameters": {"top_k": 1}}, [-1.25])
    assert answer == [[{"label": "LABEL_0", "score": -1.25}]]
    assert read(HUGGINGFACE, "/", {"inputs": "a"}).items == [Text("a", "added")]


@pytest.mark.parametrize(("function", "expected"), [(None, "identity"), ("none", "identity"), ("sigmoid", "sigmoid")])
def test_rewards_are_raw_unless_the_sigmoid_is_asked_for(function, expected):
    body = {"inputs": "a", "parameters": {"function_to_apply": function}}
    assert read(HUGGINGFACE, "/", body).activation == expected


def test_the_softmax_of_one_label_is_refused():
    with pytest.raises(ValidationError, match="is 1 for every text"):
        read(HUGGINGFACE, "/", {"inputs": "a", "parameters": {"function_to_apply": "softmax"}})


def test_errors():
    assert HUGGINGFACE.error(ServingError("invalid", "why")) == (422, {"error": "why"})
