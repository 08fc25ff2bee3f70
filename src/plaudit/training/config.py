"""`RewardConfig`: the options of a reward-training run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available

from plaudit.errors import ConfigError
from plaudit.training.reward_options import CHOICES, RewardOptions

__all__ = ["RewardConfig"]


@dataclass
class RewardConfig(RewardOptions, TrainingArguments):
    """`transformers.TrainingArguments`, with other defaults and the options of reward training.

    The names are those of TRL's `RewardConfig`. Defaults that differ from `TrainingArguments`: `learning_rate=1e-4`,
    `logging_steps=10`, `gradient_checkpointing=True` (also under its new name `activation_checkpointing`), `bf16`,
    which is on where the hardware computes it well and off elsewhere, so that `RewardConfig()` runs on any machine, and
    `logging_nan_inf_filter=False`: a loss that is not finite ends the run, and to look for it again would let the host
    wait for the device in every step.

    `RewardOptions` has the fields with their help, which `plaudit train --help` prints; docs/training.md explains them.

    Raises:
        ConfigError: An option has no such value.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]

    def __post_init__(self) -> None:
        self._settle_precision()
        self._settle_checkpointing()
        super().__post_init__()
        self._settle_padding()
        self._check_choices()

    def _check_numbers(self) -> None:
        """Check the numbers at which the Trainer would fail late, or train nothing."""
        whole = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
        for option in whole:
            value = getattr(self, option)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{option}: expected a whole number above 0, got {value!r}.")
        if self.num_heads is not None and (not isinstance(self.num_heads, int) or self.num_heads < 1):
            raise ConfigError(f"num_heads: expected a whole number above 0, got {self.num_heads!r}.")
        if not isinstance(self.learning_rate, (int, float)) or self.learning_rate < 0:
            raise ConfigError(f"learning_rate: expected a number of at least 0, got {self.learning_rate!r}.")
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            raise ConfigError(f"num_train_epochs: expected a number above 0, got {self.num_train_epochs!r}.")
        if self.max_steps != -1 and self.max_steps < 1:
            raise ConfigError(
                f"max_steps: expected a whole number above 0, or -1 for all epochs, got {self.max_steps!r}."
            )

    def _check_loss(self) -> None:
        if not isinstance(self.label_smoothing, (int, float)) or not 0 <= self.label_smoothing <= 0.5:
            raise ConfigError(f"label_smoothing: expected a number from 0 to 0.5, got {self.label_smoothing!r}.")
        if self.tie_threshold is not None and self.loss_type != "ties":
            raise ConfigError(f"tie_threshold is for loss_type='ties', but loss_type is {self.loss_type!r}.")
        if self.tie_threshold is not None and not self.tie_threshold > 0:
            raise ConfigError(f"tie_threshold: expected a number above 0, got {self.tie_threshold!r}.")
        if self.margin_from_scores and self.loss_type == "plackett_luce":
            raise ConfigError("margin_from_scores: a whole ranking has no margins. Use another `loss_type`.")

    @property
    def load_options(self) -> dict[str, Any]:
        """`model_init_kwargs` as a dict; it may be given as JSON, or not at all."""
        options = self.model_init_kwargs or {}
        if isinstance(options, str):
            raise ConfigError(f"model_init_kwargs: expected a dict, or JSON in braces, got {options!r}.")
        return options

    @property
    def mixed_dtype(self) -> torch.dtype | None:
        """The dtype of mixed precision, or `None` without it."""
        return torch.bfloat16 if self.bf16 else torch.float16 if self.fp16 else None

    def _settle_precision(self) -> None:
        if not torch.accelerator.is_available():
            self.use_cpu = True  # without it, transformers looks for a GPU and refuses bf16
        if self.bf16 is None:
            self.bf16 = not self.fp16 and _computes_bf16_well(self.use_cpu)

    def _settle_checkpointing(self) -> None:
        # transformers 5.23 renames `gradient_checkpointing` and warns at the old name. Both are accepted here; the
        # new one wins, as there.
        for new, old, default in (
            ("activation_checkpointing", "gradient_checkpointing", True),
            ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs", None),
        ):
            given = [value for value in (getattr(self, new), getattr(self, old), default) if value is not None]
            setattr(self, new, given[0] if given else None)
            setattr(self, old, None)

    def _settle_padding(self) -> None:
        multiple = self.pad_to_multiple_of
        if multiple == "auto":
            multiple = 128 if self.device.type == "neuron" else None
        elif isinstance(multiple, str):  # from the command line
            if multiple.lower() not in ("none", "null") and not multiple.isdecimal():
                raise ConfigError(f"pad_to_multiple_of: expected a whole number, 'auto' or 'none', got {multiple!r}.")
            multiple = int(multiple) if multiple.isdecimal() else None
        self.pad_to_multiple_of = multiple

    def _check_choices(self) -> None:
        for option, choices in CHOICES.items():
            value = getattr(self, option)
            if value not in choices:
                raise ConfigError(f"{option}: expected one of {', '.join(choices)}, got {value!r}.")
        if Path(self.output_dir).exists() and not Path(self.output_dir).is_dir():
            raise ConfigError(f"output_dir: expected a folder, or nothing yet, but '{self.output_dir}' is a file.")
        for option in ("max_length", "pad_to_multiple_of", "max_tokens_per_batch"):
            value = getattr(self, option)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"{option}: expected a whole number above 0, or None, got {value!r}.")
        self._check_numbers()
        self._check_loss()
        if self.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
            raise ConfigError(
                f"train_sampling_strategy={str(self.train_sampling_strategy)!r} is not offered, since a row is two "
                f"sequences. Use 'random' or 'sequential'."
            )
        if self.label_smoothing_factor:
            raise ConfigError("label_smoothing_factor is for classification losses. Use `label_smoothing`.")
        fraction = self.overlong_max_fraction
        if fraction is not None and not 0 <= fraction <= 1:
            raise ConfigError(f"overlong_max_fraction: expected a number from 0 to 1, got {fraction}.")


def _computes_bf16_well(use_cpu: bool) -> bool:
    """Return whether bf16 matrix products run natively: Ampere and later GPUs, CPUs with AVX512-BF16 or AMX.

    Emulated bf16 (older CPUs, older GPUs, Apple's) runs, but slower than float32 or with no gain.
    """
    if use_cpu:
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch cannot tell
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    accelerator = torch.accelerator.current_accelerator()
    return accelerator is not None and accelerator.type != "mps" and bool(is_torch_bf16_gpu_available())
