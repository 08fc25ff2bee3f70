"""The device of a model that is loaded for scoring, and loading it whole in a process that shards its own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.integrations import deepspeed

from plaudit.errors import ConfigError

__all__ = ["resolve_device", "without_sharding"]

_EFFICIENT_LOADING = "FSDP_CPU_RAM_EFFICIENT_LOADING"


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return the device of a name; for `None` an accelerator if there is one, else the CPU.

    Raises:
        ConfigError: This machine has no device of that name.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = device or accelerator or "cpu"
    try:
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("it holds no numbers")
    except (AssertionError, RuntimeError) as error:  # the former of a torch without CUDA
        reason = str(error).strip().split("\n")[0]
        here = "cpu" if accelerator is None else f"cpu, {accelerator.type}"
        raise ConfigError(f"device: {str(device)!r} cannot be used here ({reason}). There is: {here}.") from error
    return torch.device(device)


@contextmanager
def without_sharding() -> Iterator[None]:
    """Let transformers load whole models within this context, in a process in which a trainer shards its own.

    FSDP and ZeRO-3 are settings of the process, and transformers applies them to every model that it loads: it loads
    DeepSpeed's shards, or, on all processes of a machine but the first, leaves empty what a checkpoint lacks (the head
    that an adapter brings). A reward model beside a sharded policy would never be gathered.
    """
    reference = deepspeed._hf_deepspeed_config_weak_ref  # there is no public way to read the object that was set
    config = reference() if reference is not None else None
    efficient_loading = os.environ.pop(_EFFICIENT_LOADING, None)
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            deepspeed.set_hf_deepspeed_config(config)
        if efficient_loading is not None:
            os.environ[_EFFICIENT_LOADING] = efficient_loading
