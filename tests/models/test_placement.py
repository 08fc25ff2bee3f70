"""The device of a model, and a whole model beside a sharded one."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers.distributed.fsdp import is_fsdp_enabled
from transformers.integrations import deepspeed

from plaudit import RewardModel
from plaudit.errors import ConfigError

SENTENCES = [("Is the sky blue? " * n + "Yes.")[: 5 + 7 * n] for n in (3, 0, 9, 1, 6, 2, 8, 4)]


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_named_before_anything_is_loaded(tmp_path, device):
    with pytest.raises(ConfigError, match=f"device: '{device}' cannot be used here .* There is: cpu"):
        RewardModel.from_pretrained(tmp_path, device=device)


@pytest.fixture(params=["whole", "an adapter"])
def saved(request, make_trainer, base_folder):
    """A trainer that has saved its model; the base of the adapter has no head of its own."""
    options = {} if request.param == "whole" else {"model": str(base_folder), "peft_config": LoraConfig()}
    trainer = make_trainer(max_steps=2, **options)
    trainer.train()
    trainer.save_model()
    return trainer


@pytest.fixture(params=["FSDP", "ZeRO-3"])
def sharding(request, monkeypatch, tmp_path, saved):
    """The second process of a machine on which a trainer shards its policy."""
    if request.param == "FSDP":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
        monkeypatch.setenv("LOCAL_RANK", "1")
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        assert is_fsdp_enabled()
        yield is_fsdp_enabled
        torch.distributed.destroy_process_group()
    else:
        config = Mock(config={}, **{"is_zero3.return_value": True})
        deepspeed.set_hf_deepspeed_config(config)
        yield lambda: deepspeed.deepspeed_config() is config.config
        deepspeed.unset_hf_deepspeed_config()


def test_beside_a_policy_in_shards_a_reward_model_is_whole(saved, sharding):
    loaded = RewardModel.from_pretrained(saved.args.output_dir, device="cpu")
    expected = RewardModel(saved.model, saved.processing_class).score(SENTENCES)
    np.testing.assert_allclose(loaded.score(SENTENCES), expected, atol=2e-6)
    assert sharding()  # as before, for the policy
