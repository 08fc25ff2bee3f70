import pytest
from dialect_calls import ask, read
from pydantic import ValidationError

from plaudit.serving.dialects.llama_factory import LLAMA_FACTORY
from plaudit.serving.scoring_request import Text
from plaudit.serving.serving_errors import ServingError

PATH = "/v1/score/evaluation"
SENT = {"model": "model", "messages": ["a", "b"]}


def test_answers_to_the_field():
    answer = ask(LLAMA_FACTORY, PATH, SENT, [0.5, -1.25])
    assert answer.pop("id").startswith("scoreval-")
    assert answer == {"object": "score.evaluation", "model": "tiny", "scores": [0.5, -1.25]}


def test_messages_are_texts_that_get_special_tokens():
    request = read(LLAMA_FACTORY, PATH, SENT)
    assert request.items == [Text("a", "added"), Text("b", "added")]
    assert (request.truncation, request.max_length) == (None, None)


def test_with_max_length_texts_are_cut_on_the_right():
    request = read(LLAMA_FACTORY, PATH, SENT | {"max_length": 64})
    assert (request.truncation, request.max_length) == ("right", 64)


@pytest.mark.parametrize("given", [{"max_length": 0}, {"messages": "a"}, {"messages": [{"role": "user"}]}])
def test_other_bodies_are_refused(given):
    with pytest.raises(ValidationError):
        read(LLAMA_FACTORY, PATH, SENT | given)


def test_errors():
    assert LLAMA_FACTORY.error(ServingError("invalid", "why")) == (400, {"detail": "why"})
