import pytest
import torch
from architectures import SEQUENCES, alone, forest_batch, forest_gradients, forest_model, make, rewards

from plaudit.models.last_layer import last_feed_forward_at


def watched(kind):
    """A model, and the numbers of tokens that its last feed-forward part was given inside and showed to a hook."""
    model, inside, shown = forest_model(kind), [], []
    part = model.base_model.layers[-1].mlp
    part.down_proj.register_forward_pre_hook(lambda _, given: inside.append(given[0].shape[1]))
    part.register_forward_hook(lambda _, given, out: shown.append(out.shape[1]))
    return model, inside, shown


@pytest.mark.parametrize("kind", ["qwen3", "gemma2 with softcap and window", "phi"])
def test_rewards_without_gradients_are_those_of_each_sequence_by_itself(kind):
    stock = make(kind)
    model = forest_model(kind)
    with torch.no_grad():
        torch.testing.assert_close(rewards(model), alone(stock), atol=1e-5, rtol=1e-5)


def test_hooks_of_others_see_every_token():
    model, inside, shown = watched("qwen3")
    rewards(model)
    assert inside == [16 * -(-len(SEQUENCES) // 16)]
    assert shown == [forest_batch()["input_ids"].shape[1]]


def test_gradients_need_every_token():
    model, inside, _ = watched("qwen3")
    forest_gradients(model)
    assert inside == [forest_batch()["input_ids"].shape[1]]


def test_after_an_error_the_part_computes_every_token_again():
    model, inside, _ = watched("qwen3")
    with pytest.raises(RuntimeError, match="in the middle"), last_feed_forward_at(model, torch.tensor([4])):
        raise RuntimeError("in the middle")
    model.base_model.layers[-1].mlp(torch.ones(1, 5, 32))
    assert inside == [5]


def test_a_part_with_several_arguments_stays_as_it_is():
    model = make("llama")
    part = model.base_model.layers[-1].mlp
    plain, hidden = part.forward, torch.randn(1, 5, 32)
    part.forward = lambda hidden, factor: factor * plain(hidden)
    with last_feed_forward_at(model, torch.tensor([4])):
        torch.testing.assert_close(part(hidden, 2.0), 2.0 * plain(hidden))


@pytest.mark.parametrize("kind", ["gpt2", "opt", "qwen3_moe"])
def test_a_model_without_a_plain_part_of_that_name_stays_as_it_is(kind):
    model = make(kind)
    sequence = torch.tensor([SEQUENCES[0]])
    expected = model.base_model(sequence)[0]
    with last_feed_forward_at(model, torch.tensor([0])):
        assert torch.equal(model.base_model(sequence)[0], expected)
