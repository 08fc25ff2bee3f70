"""The client of the native API against the server itself: the rewards of the model in process, and its errors."""

import numpy as np
import pytest

from plaudit import RewardFunction, evaluate
from plaudit.errors import ConfigError, DataError
from plaudit.scoring.remote_model import RemoteRewardModel

TEXTS = [f"Is the {noun} {colour}? {end}" for noun in ("sky", "dog") for colour in ("blue", "green") for end in "abc"]
CHATS = [[{"role": "user", "content": f"Is it {n}?"}, {"role": "assistant", "content": "Yes, " * n}] for n in (1, 2, 3)]


@pytest.fixture
def remote(server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return RemoteRewardModel(server.url, batch_items=4)


def close(rewards):
    return pytest.approx(rewards, abs=1e-5)


def test_rewards_and_details_are_those_of_the_model(server, remote):
    sequences = [*TEXTS, *CHATS, "Is the sky blue? " * 100]
    options = [{}] * len(TEXTS) + [{"tools": [{"name": "add"}]}, {}, {"shout": True}, {}]
    there, here = (
        each.score(sequences, options=options, return_details=True) for each in (remote, server.reward_model)
    )
    assert there.rewards == close(here.rewards)
    assert there.tokens.tolist() == here.tokens.tolist()
    assert there.truncated.tolist() == here.truncated.tolist() == [False] * (len(sequences) - 1) + [True]
    assert remote.score(TEXTS, normalize=True) == close(server.reward_model.score(TEXTS, normalize=True))


def test_an_answer_with_a_call_of_a_tool_has_no_content(server, remote):
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "add"}}]}
    conversation = [{"role": "user", "content": [{"type": "text", "text": "Two plus two?"}]}, call]
    assert remote.score([conversation]) == close(server.reward_model.score([conversation]))


def test_ranks_and_evaluations_are_those_of_the_model(server, remote, text_rows):
    prompt, completions = CHATS[0][:1], ["Yes.", "No, it is green!", "Thank you."]
    there, here = (each.rank(prompt, completions) for each in (remote, server.reward_model))
    assert [each.index for each in there] == [each.index for each in here]
    there, here = (evaluate(each, text_rows) for each in (remote, server.reward_model))
    assert there.overall["accuracy"] == here.overall["accuracy"]
    assert there.scores.header["weight_version"] == remote.weight_version


def test_a_reward_function_of_its_address_rewards_as_the_model(server, remote):
    prompts, completions = [each[:1] for each in CHATS], ["Yes.", "No.", "Thank you."]
    rewards = RewardFunction(server.url)(prompts, completions)
    assert rewards == close(server.reward_model.score(prompts, completions))
    assert np.std(rewards) > 1e-3


def test_errors_name_the_row_and_say_what_is_missing(server, remote):
    strict = RemoteRewardModel(server.url, overlong="error", batch_items=4)
    with pytest.raises(DataError, match="^row 9: .* tokens, more than 256"):
        strict.score([*TEXTS[:9], "Is the sky blue? " * 100])
    with pytest.raises(ConfigError, match="calibrated"):
        remote.rank("Is it?", [" Yes.", " No."], calibrated=True)
