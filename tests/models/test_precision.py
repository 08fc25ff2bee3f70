"""Weights in float32 for a while."""

import pytest
import torch
from transformers import BitsAndBytesConfig

from plaudit.models.load import load_model
from plaudit.models.precision import in_float32


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
