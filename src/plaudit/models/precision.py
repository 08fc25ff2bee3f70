"""The precision that a model computes in, what bitsandbytes' layers do to it, and the rounding of rewards."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from plaudit.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "compute_dtype",
    "in_float32",
    "is_quantized_layer",
    "rounding_tolerance",
    "rounds_inputs",
    "settle_vector_kernels",
    "use_training_kernels_on_cpu",
]

# Adding up the terms of a product in another order costs a few units in the last place for each layer. Eight leave room
# for deep models; a wrong mask, head or token moves rewards by much more.
_ROUNDINGS = 8
_LEAST_SHARE = 1e-4


def compute_dtype(model: "PreTrainedModel") -> torch.dtype:
    """Return the coarsest dtype that the backbone of a model computes in, autocast apart.

    Some weights may be kept wider than the products are computed in: norms, adapters, or all that is not quantised.
    """
    kinds = {p.dtype for p in model.base_model.parameters() if p.is_floating_point()}
    quantization: Any = getattr(model.config, "quantization_config", None)
    if getattr(quantization, "load_in_4bit", False):
        kinds.add(quantization.bnb_4bit_compute_dtype)
    if rounds_inputs(model):
        kinds.add(torch.bfloat16)  # 8 bits of an integer are about as fine
    return max(kinds, key=lambda kind: torch.finfo(kind).eps)


def rounding_tolerance(dtype: torch.dtype) -> float:
    """Return the share of its size by which rounding alone may move a reward: 8 machine epsilons, at least 1e-4.

    That is 6% in bf16, 0.8% in fp16 and 1e-4 in float32.
    """
    return max(_LEAST_SHARE, _ROUNDINGS * torch.finfo(dtype).eps)


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Hold the weights of a model, and what its 4-bit layers compute in, in float32 within this context."""
    layers = [module for module in model.modules() if is_quantized_layer(module)]
    packed = {layer.weight for layer in layers}  # integers, whatever dtype they are stored in
    narrow = {p: p.data for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16) and p not in packed}
    computed = {layer: layer.compute_dtype for layer in layers if hasattr(layer, "compute_dtype")}
    try:
        for parameter in narrow:
            parameter.data = parameter.data.float()
        for layer in computed:
            layer.compute_dtype = torch.float32  # type: ignore[assignment]
        yield
    finally:
        for parameter, data in narrow.items():
            parameter.data = data
        for layer, dtype in computed.items():
            layer.compute_dtype = dtype


def settle_vector_kernels() -> None:
    """Let MKL choose the kernels of its vector mathematics (cos, exp, sqrt, ...) in a call with one thread.

    The first such call of a process detects the processor and is not thread-safe: a thread that enters during the
    detection computes its piece with a kernel that is right to 12 bits, and a cosine is off by up to 1.5e-4
    (https://github.com/pytorch/pytorch/issues/188792; `benchmarks/first_cosine.py`). One element takes one thread.
    """
    torch.zeros(1, dtype=torch.float32, device="cpu").cos()


# Layers of bitsandbytes


def is_quantized_layer(module: nn.Module) -> bool:
    """Return whether a module is a quantised linear layer of bitsandbytes."""
    return isinstance(module, nn.Linear) and type(module).__module__.startswith("bitsandbytes")


def rounds_inputs(model: nn.Module) -> bool:
    """Return whether 8-bit layers of a model round their inputs to 8 bits, as they do everywhere but on the CPU."""
    layers = (module for module in model.modules() if is_quantized_layer(module) and hasattr(module, "state"))
    return any(layer.weight.device.type != "cpu" for layer in layers)


def use_training_kernels_on_cpu(model: nn.Module) -> None:
    """Let the quantised layers of a model compute the same in evaluation as in training where they run on a CPU.

    In evaluation, bitsandbytes takes other kernels there. On processors with AVX512-BF16, 4-bit layers repack their
    weights permanently and compute in bf16: rewards move, no gradient passes any more, and many shapes fail. 8-bit
    layers round their inputs to 8 bits as well. In training mode, which changes nothing else in such a layer, both
    multiply by the weights as they were quantised.

    Raises:
        ModelError: A layer has repacked its weights already.
    """
    for name, module in model.named_modules():
        if not is_quantized_layer(module):
            continue
        if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise ModelError(
                f"{name}: bitsandbytes has repacked these 4-bit weights for inference on this CPU, and could neither "
                f"train through them nor score exactly. Load the model again, and use it through Plaudit alone."
            )
        if not getattr(module, "uses_training_kernel", False):
            module.uses_training_kernel = True
            module.register_forward_pre_hook(_set_training_mode)


def _set_training_mode(layer: nn.Module, _: Any) -> None:
    if layer.weight.device.type == "cpu":
        layer.training = True
