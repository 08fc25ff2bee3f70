"""Training on several processes: what is refused early, and the exchanges between processes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from plaudit.errors import ConfigError

if TYPE_CHECKING:
    from transformers import Trainer

__all__ = [
    "check_can_evaluate",
    "check_can_train",
    "check_devices",
    "greatest_over_processes",
    "is_sharded",
    "leave_process_group",
    "maximum_over_processes",
    "zero_stage",
]


def check_devices(trainer: "Trainer") -> None:
    """Refuse several GPUs in one process, and a sharded model whose saves would hold no weights.

    Raises:
        ConfigError: The message names the setting to change.
    """
    if trainer.args.n_gpu > 1:
        raise ConfigError(
            "several GPUs are visible to one process, and `nn.DataParallel` cannot split comparisons. Start with "
            "`accelerate launch` or `torchrun`, or make one GPU visible with CUDA_VISIBLE_DEVICES."
        )
    has_adapter = hasattr(trainer.model, "peft_config")  # transformers gathers all adapter weights by itself
    is_zero3 = zero_stage(trainer.accelerator) == 3
    if is_zero3 and not has_adapter and not trainer.accelerator.state.deepspeed_plugin.zero3_save_16bit_model:
        raise ConfigError(
            "DeepSpeed ZeRO-3 would save no weights, and no reward head: each process holds a part of them. Set "
            "`stage3_gather_16bit_weights_on_model_save: true` under `zero_optimization` in DeepSpeed's own file, "
            "or `zero3_save_16bit_model: true` under `deepspeed_config` in accelerate's."
        )
    if trainer.is_fsdp_enabled:
        # accelerate has FSDP2 round the outputs of a model to the run's precision, which would make many rewards equal.
        fsdp = trainer.accelerator.state.fsdp_plugin
        if fsdp.fsdp_version == 2 and fsdp.mixed_precision_policy is not None:
            fsdp.mixed_precision_policy = replace(fsdp.mixed_precision_policy, output_dtype=None)


def check_can_train(trainer: "Trainer") -> None:
    """Refuse to train a model that ZeRO-3 has set up already, for an evaluation or another training.

    Raises:
        ConfigError: The message says how to evaluate instead.
    """
    if zero_stage(trainer.accelerator) == 3 and trainer.deepspeed is not None:
        raise ConfigError(
            "under DeepSpeed ZeRO-3 a model that was evaluated or trained cannot be trained by this trainer again. Let "
            "the training evaluate it, with `eval_on_start=True`, or make a new trainer."
        )


def check_can_evaluate(trainer: "Trainer") -> None:
    """Refuse to evaluate before training under ZeRO-1 and ZeRO-2, which set a model up for training alone.

    Raises:
        ConfigError: The message says how to evaluate instead.
    """
    if zero_stage(trainer.accelerator) in (1, 2) and trainer.deepspeed is None:
        raise ConfigError(
            "under DeepSpeed ZeRO-1 and ZeRO-2 a model cannot be evaluated before it is trained. Let the training "
            "evaluate it, with `eval_on_start=True`, or evaluate without DeepSpeed."
        )


def is_sharded(trainer: "Trainer") -> bool:
    """Return whether one model lies on several processes, so that all take part in a forward pass or a save.

    Elsewhere each process has the whole model and one of them saves: a script may call `save_model` on that one alone.
    """
    return trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or trainer.is_distributed_loading_by_transformers


def zero_stage(accelerator: Accelerator) -> int:
    """Return the stage of DeepSpeed's ZeRO, 0 without DeepSpeed."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    return 0 if plugin is None else plugin.zero_stage


def greatest_over_processes(values: Sequence[int], device: torch.device) -> list[int]:
    """Return the greatest of each value over all processes, each of which must call this with as many values.

    Args:
        values: Whole numbers or booleans.
        device: The device on which processes exchange tensors.
    """
    if not (distributed.is_initialized() and distributed.get_world_size() > 1):
        return list(values)
    return maximum_over_processes(torch.tensor(values, dtype=torch.int, device=device)).tolist()


def maximum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Return the greatest of each value over all processes, changed in place, without a wait for the device.

    Args:
        values: Integers on the device on which processes exchange tensors, of the same shape on each process.
    """
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return values


def leave_process_group(wrapped: torch.nn.Module) -> None:
    """Let a DDP model go of its process group, so that destroying the group ends the threads of gloo at once.

    Gloo's threads let go of a gathered tensor a moment after its result is there, and need Python's lock for it. A
    group that is still held when a script ends keeps its threads, and the end of Python aborts the process where it
    meets one that wants the lock. DDP's reducer must not be the last to hold the group: it would wait for the threads
    while it holds that lock, and never return. The group itself waits without the lock.
    """
    if isinstance(wrapped, DistributedDataParallel):
        del wrapped.reducer, wrapped.logger, wrapped.process_group
