"""A `Trainer` on many devices: what it refuses early, what it keeps exact, and how it leaves the other processes."""

from dataclasses import replace
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from plaudit.errors import ConfigError

__all__ = ["ManyDevicesTrainer"]


class ManyDevicesTrainer(Trainer):
    """Mends what transformers and the wrappers below it do to a reward model. It knows nothing of rewards.

    Raises:
        ConfigError: Several GPUs in one process, or a sharded model whose saves would hold no weights.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ConfigError(
                "several GPUs are visible to one process, and `nn.DataParallel` cannot split comparisons. Start with "
                "`accelerate launch` or `torchrun`, or make one GPU visible with CUDA_VISIBLE_DEVICES."
            )
        adapter = hasattr(self.model, "peft_config")  # of which transformers gathers all that trains
        if self._zero_stage == 3 and not adapter and not self._zero.zero3_save_16bit_model:
            raise ConfigError(
                "DeepSpeed ZeRO-3 would save no weights, and no reward head: each process holds a part of them. Set "
                "`stage3_gather_16bit_weights_on_model_save: true` under `zero_optimization` in DeepSpeed's own file, "
                "or `zero3_save_16bit_model: true` under `deepspeed_config` in accelerate's."
            )
        if self.is_fsdp_enabled:
            _keep_rewards_wide(self.accelerator.state.fsdp_plugin)

    @property
    def _is_spread(self) -> bool:
        """Whether one model lies on several processes, so that all take part in a save or a forward pass.

        Elsewhere each has the whole model and one of them writes: a script may call `save_model` on that one alone.
        """
        return self.is_fsdp_enabled or self.is_deepspeed_enabled or self.is_distributed_loading_by_transformers

    @property
    def _zero(self) -> Any:
        return getattr(self.accelerator.state, "deepspeed_plugin", None)

    @property
    def _zero_stage(self) -> int:
        return 0 if self._zero is None else self._zero.zero_stage

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        # Under DeepSpeed the Trainer casts what is no id to the precision of the weights: margins, labels, and the
        # counts that the loss is divided by.
        prepared = super()._prepare_inputs(inputs)
        if self.is_deepspeed_enabled:
            floats = (name for name, value in inputs.items() if torch.is_tensor(value) and value.is_floating_point())
            prepared.update({name: inputs[name].to(self.args.device) for name in floats})
        return prepared

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """The stock loop; under ZeRO-1 and ZeRO-2 also before any training, where the Trainer refuses it."""
        if not (0 < self._zero_stage < 3 and self.deepspeed is None):
            return super().evaluation_loop(*args, **kwargs)
        self.is_deepspeed_enabled = False  # each process has the whole model, and nothing to share out yet
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self.is_deepspeed_enabled = True
            self.accelerator._models.clear()  # DeepSpeed takes one model, and has not seen this one

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        if self._zero_stage == 3 and self.deepspeed is not None and self.accelerator.deepspeed_engine_wrapped is None:
            raise ConfigError(
                "under DeepSpeed ZeRO-3 a model that was evaluated cannot be trained any more by this trainer. Let the "
                "training evaluate it, with `eval_on_start=True`, or make a new trainer."
            )
        return super()._prepare_for_training(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The stock save; where FSDP keeps sharded checkpoints, with the whole model beside them."""
        super().save_model(output_dir, _internal_call)
        if self.is_fsdp_enabled and "FULL" not in str(self.accelerator.state.fsdp_plugin.state_dict_type):
            self._save(output_dir, state_dict=self.accelerator.get_state_dict(self.model))

    def end(self) -> None:
        """Finish the trackers and leave the other processes: the last line of a script that many of them run.

        Gloo's threads let go of a gathered tensor a moment after the result is there, and need Python's lock for it.
        Where a script ends in that moment, Python's end aborts the process; or DDP's reducer, the last to hold the
        group, waits for those threads with that lock in hand, for ever. Without the reducer, the group itself is the
        last, and waits without the lock.
        """
        if isinstance(self.model_wrapped, DistributedDataParallel):
            del self.model_wrapped.reducer, self.model_wrapped.logger
        super().end()


def _keep_rewards_wide(fsdp: Any) -> None:
    # accelerate has FSDP2 round a model's outputs to the run's precision, and many rewards would then be equal.
    if fsdp.fsdp_version == 2 and fsdp.mixed_precision_policy is not None:
        fsdp.mixed_precision_policy = replace(fsdp.mixed_precision_policy, output_dtype=None)
