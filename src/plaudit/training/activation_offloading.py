"""Activation offloading: what backward needs waits in the CPU's memory during the step."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["offload_activations"]

_LEAST_ELEMENTS = 1024  # below this a copy costs more than it saves


def offload_activations(model: nn.Module, enabled: bool = True) -> AbstractContextManager[None]:
    """A context in which tensors saved for backward are kept on the CPU and brought back when needed.

    Parameters stay where they are, since they hold their memory anyway; so does what lies on the CPU already.

    Args:
        model: Its parameters are left alone.
        enabled: Without it, the context does nothing.
    """
    if not enabled:
        return nullcontext()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor | tuple[torch.device, torch.Tensor]:
        small = tensor.numel() < _LEAST_ELEMENTS
        if small or tensor.device.type == "cpu" or tensor.untyped_storage().data_ptr() in parameters:
            return tensor
        held = torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")
        held.copy_(tensor, non_blocking=True)
        return tensor.device, held

    def unpack(saved: torch.Tensor | tuple[torch.device, torch.Tensor]) -> torch.Tensor:
        return saved if isinstance(saved, torch.Tensor) else saved[1].to(saved[0], non_blocking=True)

    return saved_tensors_hooks(pack, unpack)
