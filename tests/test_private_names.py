"""The private or undocumented names of other libraries that Plaudit uses, and the behaviour that it assumes of each.

An upgrade that renames one, or gives it another meaning, fails here by name. The methods of the Trainer that
`RewardTrainer` overrides are held in `tests/training/test_upstream_contract.py`.
"""

import ast
import functools
import inspect
import logging
import os
import weakref
from pathlib import Path
from types import MethodType

import pytest
import torch
from accelerate.utils import extract_model_from_parallel
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, load_peft_weights
from safetensors.torch import load_file
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AutoModelForSequenceClassification,
    BloomConfig,
    TrainingArguments,
)
from transformers.integrations import deepspeed
from transformers.integrations.flex_attention import get_flex_attention_lse_kwargs
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.quantizers.base import get_keys_to_not_convert

SOURCE = Path(__file__).parents[1] / "src" / "plaudit"
HELD = {
    # transformers
    "_attn_implementation": "forest",
    "_can_set_attn_implementation": "forest",
    "_hf_deepspeed_config_weak_ref": "models",
    "_keys_to_ignore_on_save": "models",
    "_supports_attention_backend": "forest",
    "_VALID_DICT_FIELDS": "training",
    # accelerate
    "_original_forward": "checkpoint and training",
    # torch
    "_ddp_params_and_buffers_to_ignore": "training",
    "_dynamo": "forest",
    "_scaled_dot_product_flash_attention_for_cpu": "forest",  # held in tests/forest/test_fused.py
    "_scaled_dot_product_flash_attention_for_cpu_backward": "forest",
    "_softmax_backward_data": "forest",
}
OF_THE_TRAINER = {"_get_grad_norm", "_init_training_state", "_internal_call"}  # held in the other file
PUBLIC = {"_exit", "_replace"}  # of `os` and of named tuples


def private_names(path):
    """Attributes and keywords that begin with one underscore, other than those of `self` and `cls`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            yield node.attr
        if isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
            "getattr",
            "get",
        ):
            yield from (each.value for each in node.args if isinstance(each, ast.Constant))


def test_every_private_name_that_is_used_is_held():
    names = {name for path in SOURCE.rglob("*.py") for name in private_names(path) if isinstance(name, str)}
    used = {name for name in names if name.startswith("_") and not name.startswith("__")}
    assert used == HELD.keys() | OF_THE_TRAINER | PUBLIC


# transformers


@pytest.fixture
def bloom():
    return AutoModelForSequenceClassification.from_config(
        BloomConfig(vocab_size=9, hidden_size=8, n_layer=1, n_head=1, num_labels=1)
    )


def test_supports_attention_backend_and_can_set_attn_implementation_tell_who_takes_registered_attention(
    make_model, bloom
):
    assert make_model()._supports_attention_backend
    assert make_model()._can_set_attn_implementation()
    assert not (bloom._supports_attention_backend and bloom._can_set_attn_implementation())


def test_attn_implementation_is_the_name_that_was_set(make_model):
    model = make_model()
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"


def test_all_attention_functions_hold_the_kernels_and_masks_by_name():
    assert callable(ALL_ATTENTION_FUNCTIONS["sdpa"])
    assert callable(ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def test_get_flex_attention_lse_kwargs_are_keywords_of_flex_attention():
    flex = inspect.signature(torch.nn.attention.flex_attention.flex_attention).parameters
    assert get_flex_attention_lse_kwargs(True).keys() <= flex.keys()


def test_keys_to_ignore_on_save_keeps_weights_out_of_a_saved_model(make_model, tmp_path):
    model = make_model()
    model._keys_to_ignore_on_save = {"score.weight"}
    model.save_pretrained(tmp_path)
    assert "score.weight" not in load_file(tmp_path / "model.safetensors")


def test_hf_deepspeed_config_weak_ref_gives_the_object_that_was_set():
    class Config:
        pass

    config = Config()
    deepspeed.set_hf_deepspeed_config(config)
    try:
        assert isinstance(deepspeed._hf_deepspeed_config_weak_ref, weakref.ref)
        assert deepspeed._hf_deepspeed_config_weak_ref() is config
    finally:
        deepspeed.unset_hf_deepspeed_config()
    assert deepspeed._hf_deepspeed_config_weak_ref is None


def test_valid_dict_fields_name_the_options_that_may_be_json():
    assert "lr_scheduler_kwargs" in TrainingArguments._VALID_DICT_FIELDS


def test_get_keys_to_not_convert_names_the_head(make_model):
    assert "score" in get_keys_to_not_convert(make_model())


def test_the_report_of_a_load_is_logged_by_modeling_utils(base_folder, caplog):
    reporter = logging.getLogger("transformers.modeling_utils")
    reporter.addHandler(caplog.handler)
    try:
        AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1)
    finally:
        reporter.removeHandler(caplog.handler)
    assert "score.weight" in caplog.text


# accelerate


def test_original_forward_is_the_plain_forward_that_accelerate_keeps():
    model = torch.nn.Linear(2, 2)
    plain = model.forward
    wrapped = functools.wraps(plain.__func__)(lambda self, inputs: plain(inputs) + 1)
    model._original_forward, model.forward = plain, MethodType(wrapped, model)
    extract_model_from_parallel(model, keep_fp32_wrapper=False)
    assert "_original_forward" not in vars(model)
    assert torch.equal(model(torch.ones(2)), plain(torch.ones(2)))


# peft


def test_lora_target_modules_are_mapped_by_architecture():
    chosen = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING["qwen3"]
    assert {"q_proj", "v_proj"} <= set(chosen)


def test_base_tuner_layer_is_the_class_of_every_adapted_layer(make_model, tmp_path):
    model = get_peft_model(make_model(), LoraConfig(target_modules=["q_proj"]))
    adapted = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    assert len(adapted) == 2
    assert all(name.endswith("q_proj") for name in adapted)
    model.save_pretrained(tmp_path)
    weights = load_peft_weights(str(tmp_path), device="cpu")
    assert {name.split(".layers")[0] for name in weights} == {"base_model.model.model"}


# torch


@pytest.fixture
def process_group():
    """A process group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_ddp_params_and_buffers_to_ignore_are_read_by_ddp_which_has_a_reducer_and_a_logger(process_group):
    model = torch.nn.BatchNorm1d(2)
    model._ddp_params_and_buffers_to_ignore = ["running_mean"]
    wrapped = DistributedDataParallel(model)
    assert wrapped.parameters_to_ignore == {"running_mean"}
    del wrapped.reducer, wrapped.logger, wrapped.process_group  # as `plaudit.training.distributed` does at the end


def test_softmax_backward_data_is_the_gradient_of_the_softmax():
    scores = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    above = torch.randn(3, 4, dtype=torch.float64)
    weights = scores.softmax(-1)
    (expected,) = torch.autograd.grad(weights, scores, above)
    assert torch.equal(torch._softmax_backward_data(above, weights.detach(), -1, torch.float64), expected)


def test_dynamo_has_a_limit_on_recompilations():
    assert isinstance(torch._dynamo.config.recompile_limit, int)


# bitsandbytes


def test_layers_of_bitsandbytes_are_told_by_their_module_and_attributes():
    modules = pytest.importorskip("bitsandbytes.nn")
    four, eight = modules.Linear4bit(2, 2, compute_dtype=torch.bfloat16), modules.Linear8bitLt(2, 2)
    for layer in (four, eight):
        assert isinstance(layer, torch.nn.Linear)
        assert type(layer).__module__.startswith("bitsandbytes")
    assert four.compute_dtype == torch.bfloat16
    assert hasattr(eight, "state")
    assert not hasattr(four, "state")
    assert "packing_format_for_cpu" in inspect.getsource(modules.Linear4bit.forward)


# DeepSpeed


@pytest.mark.skipif("PLAUDIT_DEEPSPEED" not in os.environ, reason="PLAUDIT_DEEPSPEED names no folder with DeepSpeed")
@pytest.mark.parametrize("name", ["ds_id", "ds_shape", "ds_tensor"])
def test_a_parameter_of_zero_3_carries(name):
    source = Path(os.environ["PLAUDIT_DEEPSPEED"], "deepspeed/runtime/zero/partition_parameters.py")
    assert f"param.{name} = " in source.read_text(encoding="utf-8")
