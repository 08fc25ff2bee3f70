"""The heads of an ensemble on one backbone: what they put beside the reward, and their mean as the model's own head."""

import copy
import pickle

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from plaudit.errors import ModelError
from plaudit.forest.attention import enable
from plaudit.models.inputs import forest_inputs, padded_inputs
from plaudit.models.member_heads import (
    MemberHeads,
    add_member_heads,
    attach_member_heads,
    is_mean_of_members,
    member_heads,
    num_members,
    whole_heads,
    write_mean_head,
)
from plaudit.models.reward_head import attach_uncertainty, bind_reward_forward, num_columns

SEQUENCES = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 3], [1, 2, 3], [1, 2, 4, 5, 6]]


@pytest.fixture
def ensemble(make_model):
    model = make_model()
    bind_reward_forward(model)
    add_member_heads(model, 3, seed=0, around_head=True)
    return model.eval()


def columns(model, inputs=None):
    with torch.no_grad():
        return model(**(inputs or padded_inputs(SEQUENCES, 0))).logits


def test_each_sequence_has_its_reward_and_the_rewards_of_the_members(ensemble):
    found = columns(ensemble)
    assert found.shape == (4, 4)
    assert num_columns(ensemble) == 4
    assert num_members(ensemble) == 3
    weight = member_heads(ensemble).weight
    assert found.dtype == weight.dtype == torch.float32
    one_by_one = []
    attach_uncertainty(ensemble, None)
    for head in weight:
        ensemble.score.weight.data.copy_(head[None])
        one_by_one.append(columns(ensemble)[:, 0])
    torch.testing.assert_close(found[:, 1:], torch.stack(one_by_one, 1))
    torch.testing.assert_close(found[:, 0], found[:, 1:].mean(1))


def test_heads_drawn_around_a_head_have_its_rewards_as_their_mean(make_model):
    model = make_model()
    bind_reward_forward(model)
    before = columns(model)
    add_member_heads(model, 5, seed=3, around_head=True)
    torch.testing.assert_close(columns(model)[:, :1], before, atol=1e-6, rtol=0)


def test_a_forest_gives_the_columns_of_a_padded_batch(ensemble):
    enable(ensemble)
    torch.testing.assert_close(
        columns(ensemble, forest_inputs(SEQUENCES, [0, 0, 1, 1])), columns(ensemble), atol=1e-6, rtol=0
    )


def test_only_the_members_train_and_the_own_head_follows_when_it_is_written(ensemble):
    assert not ensemble.score.weight.requires_grad
    ensemble.train()(**padded_inputs(SEQUENCES, 0)).logits[:, 1:].square().sum().backward()
    with torch.no_grad():
        member_heads(ensemble).weight -= 0.1 * member_heads(ensemble).weight.grad
    assert not is_mean_of_members(ensemble)
    torch.testing.assert_close(columns(ensemble)[:, 0], columns(ensemble)[:, 1:].mean(1))
    write_mean_head(ensemble)
    assert is_mean_of_members(ensemble)
    torch.testing.assert_close(ensemble.score.weight[0], whole_heads(ensemble)[0].mean(0))


@pytest.mark.parametrize("saved", [torch.bfloat16, torch.float16, torch.float32])
def test_the_mean_is_known_in_the_precision_that_it_was_saved_in(ensemble, saved):
    ensemble.score.weight.data = ensemble.score.weight.data.to(saved).float()
    assert is_mean_of_members(ensemble)
    ensemble.score.weight.data[0, 0] *= 1 + 20 * torch.finfo(saved).eps
    ensemble.score.weight.data[0, 0] += 20 * torch.finfo(saved).eps * ensemble.score.weight.abs().max()
    assert not is_mean_of_members(ensemble)


def test_copies_and_pickles_hold_members_of_their_own(ensemble):
    expected = columns(ensemble)
    for other in (copy.deepcopy(ensemble), pickle.loads(pickle.dumps(ensemble))):
        torch.testing.assert_close(columns(other), expected)
        assert other.score.uncertainty is other.uncertainty is not ensemble.uncertainty


def test_a_state_dict_holds_the_members_once(ensemble):
    assert [name for name in ensemble.state_dict() if "uncertainty" in name] == ["uncertainty.weight"]


def test_members_of_another_size_are_refused(make_model):
    model = make_model()
    bind_reward_forward(model)
    with pytest.raises(ModelError, match="expected members of 32 features"):
        attach_member_heads(model, MemberHeads(torch.zeros(2, 31)), is_trainable=False)
    with pytest.raises(ModelError, match="without a bias"):
        attach_member_heads(model, MemberHeads(torch.zeros(2, 32), torch.zeros(2)), is_trainable=False)


@pytest.fixture
def mesh():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_a_fully_sharded_model_trains_its_members_and_writes_their_mean(mesh, ensemble, make_model):
    plain = copy.deepcopy(ensemble)
    for part in (*ensemble.model.layers, ensemble):
        fully_shard(part, mesh=mesh)
    for model in (plain, ensemble):
        model.train()(**padded_inputs(SEQUENCES, 0)).logits[:, 1:].square().sum().backward()
        torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1).step()
        write_mean_head(model)
    torch.testing.assert_close(whole_heads(ensemble)[0], whole_heads(plain)[0])
    torch.testing.assert_close(ensemble.score.weight.full_tensor(), plain.score.weight)
