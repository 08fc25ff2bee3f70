"""bitsandbytes' layers on a CPU, made to compute the same in scoring as in training.

Out of training mode they take other ways there. Where the processor has AVX512-BF16, 4-bit layers repack their weights
for good and compute in bf16: rewards move, no gradient passes any more, and many shapes fail. 8-bit layers round their
inputs to 8 bits as well. In training mode both multiply by the weights as they were quantised, and nothing else depends
on the mode of such a layer.
"""

from typing import Any

from torch import nn

from plaudit.errors import ModelError

__all__ = ["is_quantized_layer", "rounds_its_inputs", "steady_on_cpu"]


def is_quantized_layer(module: nn.Module) -> bool:
    """Whether it is a linear layer of bitsandbytes."""
    return isinstance(module, nn.Linear) and type(module).__module__.startswith("bitsandbytes")


def rounds_its_inputs(model: nn.Module) -> bool:
    """Whether 8-bit layers of the model round what they are given: everywhere but on the CPU."""
    layers = (module for module in model.modules() if is_quantized_layer(module) and hasattr(module, "state"))
    return any(layer.weight.device.type != "cpu" for layer in layers)


def steady_on_cpu(model: nn.Module) -> None:
    """Let the quantised layers of a model compute as in training wherever they run on a CPU; in place.

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
        if _compute_as_in_training not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_compute_as_in_training)


def _compute_as_in_training(layer: nn.Module, _: Any) -> None:
    if layer.weight.device.type == "cpu":
        layer.training = True
