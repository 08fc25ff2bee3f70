"""Adapters (PEFT): the options of a script, and wrapping a model so that its head trains and is saved."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from plaudit.errors import ConfigError, ModelError
from plaudit.models.head import head_names

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

    from plaudit.models.options import ModelConfig

__all__ = ["add_adapter", "base_model", "check_head_is_trained", "get_peft_config", "quiet_about_checkpointing"]


def get_peft_config(model_args: "ModelConfig") -> "PeftConfig | None":
    """The `LoraConfig` that a script's options ask for, or `None` without `use_peft`."""
    if not model_args.use_peft:
        return None
    from peft import LoraConfig

    optional: dict[str, Any] = {}
    if model_args.lora_target_parameters is not None:
        optional["target_parameters"] = model_args.lora_target_parameters
    return LoraConfig(
        task_type=model_args.lora_task_type,
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        target_modules=model_args.lora_target_modules,
        modules_to_save=model_args.lora_modules_to_save,
        use_rslora=model_args.use_rslora,
        use_dora=model_args.use_dora,
        bias="none",
        **optional,
    )


def add_adapter(model: PreTrainedModel, peft_config: "PeftConfig") -> "PeftModel":
    """Wrap the model so that the adapter and the whole head train, and both are saved.

    Args:
        model: A sequence classifier with one label.
        peft_config: Left as it is; a copy gets `task_type="SEQ_CLS"` where it names none, and the head's name in
            `modules_to_save`.

    Raises:
        ConfigError: It is no PEFT configuration, or one for another task.
    """
    from peft import PeftConfig, TaskType, get_peft_model

    if not isinstance(peft_config, PeftConfig):
        raise ConfigError(
            f"`peft_config`: expected a `peft.PeftConfig`, such as LoraConfig(), got {peft_config!r:.80}."
        )
    peft_config = copy.deepcopy(peft_config)
    peft_config.task_type = peft_config.task_type or TaskType.SEQ_CLS
    if peft_config.task_type != TaskType.SEQ_CLS:
        raise ConfigError(
            f"`peft_config.task_type` is {str(peft_config.task_type)!r}, but a reward model is a sequence classifier: "
            f"with another task PEFT would neither train nor save its head. Use 'SEQ_CLS', or leave it out."
        )
    head = head_names(model)[0].split(".")[0]
    if hasattr(peft_config, "modules_to_save"):
        # PEFT itself adds "score" and "classifier" for SEQ_CLS; other names it does not know.
        named = set(peft_config.modules_to_save or ()) - {"score", "classifier"}
        peft_config.modules_to_save = sorted(named | ({head} - {"score", "classifier"})) or None
    with quiet_about_checkpointing():
        wrapped = get_peft_model(model, peft_config)
    check_head_is_trained(wrapped)
    return wrapped


@contextmanager
def quiet_about_checkpointing() -> Iterator[None]:
    """PEFT still asks a model for its checkpointing by the name that transformers 5.23 deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


def check_head_is_trained(model: "PeftModel") -> None:
    """Raise where the head of a PEFT model would neither train nor be saved.

    Raises:
        ModelError: No head parameter requires a gradient.
    """
    base = model.get_base_model()
    if not any(base.get_submodule(name).weight.requires_grad for name in head_names(base)):
        raise ModelError(
            f"the head ({', '.join(head_names(base))}) of this PeftModel would neither train nor be saved, so its "
            f"scores would be random after a reload. Build it with task_type='SEQ_CLS', or pass the base model and "
            f"`peft_config` to the trainer; load a saved adapter with is_trainable=True."
        )


def base_model(model: Any) -> PreTrainedModel:
    """The model itself, without the adapter around it."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model
