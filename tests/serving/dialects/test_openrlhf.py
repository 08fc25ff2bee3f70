import pytest
from dialect_calls import ask, read
from pydantic import ValidationError

from plaudit.serving.dialects.openrlhf import OPENRLHF
from plaudit.serving.scoring_request import Text
from plaudit.serving.serving_errors import ServingError

SENT = {"query": ["<s>a</s>", "<s>b</s>\n"], "prompts": ["a", "b"], "labels": ["", None]}


def test_rewards_and_scores_are_the_raw_rewards():
    assert ask(OPENRLHF, "/get_reward", SENT, [0.5, -1.25]) == {
        "rewards": [0.5, -1.25],
        "scores": [0.5, -1.25],
        "extra_logs": {},
    }


def test_texts_stay_as_they_are_written():
    request = read(OPENRLHF, "/get_reward", SENT)
    assert request.items == [Text("<s>a</s>", "none"), Text("<s>b</s>\n", "none")]
    assert request.names == ["query[0]", "query[1]"]


@pytest.mark.parametrize("body", [{}, {"query": "a"}, {"query": [1]}, {"prompts": ["a"]}])
def test_other_bodies_are_refused(body):
    with pytest.raises(ValidationError):
        read(OPENRLHF, "/get_reward", body)


def test_a_full_queue_is_a_503():
    assert OPENRLHF.error(ServingError("overloaded", "full")) == (503, {"error": "full"})
