import pytest
from dialect_calls import ask, read
from pydantic import ValidationError

from plaudit.serving.dialects.slime import SLIME
from plaudit.serving.scoring_request import Pair, Text
from plaudit.serving.serving_errors import ServingError

CHAT = [{"role": "user", "content": "hi"}]


def test_the_answer_is_a_bare_number():
    assert ask(SLIME, "/", {"prompt": "<s>hi", "response": " yes", "label": {"any": 1}}, [-1.25]) == -1.25


def test_text_is_joined_as_it_is_written_and_messages_get_the_response_as_the_assistants():
    assert read(SLIME, "/", {"prompt": "<s>hi", "response": " yes"}).items == [Text("<s>hi yes", "none")]
    assert read(SLIME, "/", {"prompt": CHAT, "response": "yes"}).items == [Pair(CHAT, "yes")]


@pytest.mark.parametrize("body", [{"prompt": "a"}, {"response": "a"}, {"prompt": 1, "response": "a"}])
def test_other_bodies_are_refused(body):
    with pytest.raises(ValidationError):
        read(SLIME, "/", body)


def test_a_full_queue_is_a_503():
    assert SLIME.error(ServingError("overloaded", "full")) == (503, {"error": "full"})
