"""The forest under FSDP2: the wrapped model is called, gathers its weights layer by layer, and scores the same."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from plaudit.forest.attention import enable
from plaudit.losses import bradley_terry
from plaudit.models.inputs import forest_inputs
from plaudit.models.reward_head import bind_reward_forward

PAIRS = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 3], [1, 2, 3], [1, 2, 4, 5, 6]]  # winner, loser, ...


@pytest.fixture
def mesh():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def backward(model):
    """Rewards, after a backward pass through the wrapped model."""
    rewards = model(**forest_inputs(PAIRS, [0, 0, 1, 1])).logits.squeeze(-1)
    bradley_terry(rewards[0::2], rewards[1::2]).mean().backward()
    return rewards.detach()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_fully_sharded_model_gives_the_same_rewards_and_gradients(mesh, make_model, checkpointing):
    plain, sharded = make_model(), make_model()
    for model in (plain, sharded):
        bind_reward_forward(model)
        enable(model)
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable()
    for layer in sharded.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    assert torch.equal(backward(sharded), backward(plain))
    for ours, theirs in zip(sharded.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad.full_tensor(), theirs.grad)
