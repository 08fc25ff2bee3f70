"""Weights in float32 for a while, and the kernels of vector mathematics."""

import pytest
import torch
from transformers import BitsAndBytesConfig

from plaudit.models.load import load_model
from plaudit.models.precision import in_float32, settle_vector_kernels


def test_4_bit_layers_compute_in_float32_and_keep_their_packed_weights(base_folder):
    pytest.importorskip("bitsandbytes")
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype="bfloat16", bnb_4bit_quant_storage="bfloat16"
    )
    model = load_model(str(base_folder), quantization_config=quantization, model_init_kwargs={"dtype": torch.bfloat16})
    layer = model.model.layers[0].mlp.up_proj
    packed = layer.weight.data.clone().view(torch.uint8)
    with in_float32(model):
        assert torch.equal(layer.weight.data.view(torch.uint8), packed)
        assert layer.compute_dtype == model.model.norm.weight.dtype == torch.float32
    assert layer.compute_dtype == model.model.norm.weight.dtype == torch.bfloat16


def test_the_kernels_are_settled_on_the_cpu_whatever_the_default_device_is():
    with torch.device("meta"):
        settle_vector_kernels()
        assert torch.zeros(1).is_meta
