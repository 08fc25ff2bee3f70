"""PEFT adapters: their options, and a model wrapped so that its head trains and is saved."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import nn

from plaudit.errors import ConfigError, ModelError
from plaudit.models.reward_head import KNOWN_HEADS, head_names, outside_backbone

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

    from plaudit.models.model_config import ModelConfig

__all__ = [
    "add_adapter",
    "base_model",
    "can_mix_adapters",
    "check_head_is_trained",
    "exclude_known_heads",
    "get_peft_config",
    "has_virtual_tokens",
    "is_peft_model",
    "suppress_peft_warning",
]


def get_peft_config(model_args: "ModelConfig") -> "PeftConfig | None":
    """Return the `LoraConfig` that the options of a script ask for; `None` without `use_peft`."""
    if not model_args.use_peft:
        return None
    from peft import LoraConfig

    return LoraConfig(
        task_type=model_args.lora_task_type,
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        target_modules=model_args.lora_target_modules,
        target_parameters=model_args.lora_target_parameters,
        modules_to_save=model_args.lora_modules_to_save,
        use_rslora=model_args.use_rslora,
        use_dora=model_args.use_dora,
    )


def add_adapter(
    model: "PreTrainedModel", peft_config: "PeftConfig", *, revision: str | None = None, dropout: bool = True
) -> "PeftModel":
    """Wrap a model so that the adapter and the whole head train, and both are saved.

    All layers outside the backbone, and new layers of the backbone, train in full as well: on an encoder the layers
    before the head are as new as the head is, and a reload would draw other weights for them.

    Args:
        model: A sequence classifier with one label.
        peft_config: Not changed; a copy gets `task_type="SEQ_CLS"` where it names none, and the name of the head in
            `modules_to_save`.
        revision: The commit of the model on the hub, which the adapter's configuration will name.
        dropout: Whether a LoRA keeps its dropout. PEFT refuses dropout on parameters that are no modules, such as
            experts.

    Raises:
        ConfigError: `peft_config` is no PEFT configuration, is for another task, or fits no module of the model.
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
    if not dropout and hasattr(peft_config, "lora_dropout"):
        peft_config.lora_dropout = 0.0
    if hasattr(peft_config, "modules_to_save"):
        new = [name for name in getattr(model, "new_modules", ()) if name.startswith(f"{model.base_model_prefix}.")]
        named = {*(peft_config.modules_to_save or ()), *outside_backbone(model), *new}
        peft_config.modules_to_save = exclude_known_heads(named)
    _choose_targets(model, peft_config)
    try:
        with suppress_peft_warning():
            wrapped = get_peft_model(model, peft_config, revision=revision)
    except ValueError as error:
        raise ConfigError(
            f"`peft_config` does not fit {type(model).__name__}: {error} Name modules of the backbone, or "
            f"'all-linear'; the head ({head_names(model)[0]}) trains in full and is never adapted."
        ) from error
    check_head_is_trained(wrapped)
    return wrapped


def _choose_targets(model: "PreTrainedModel", peft_config: "PeftConfig") -> None:
    """Set the target modules of a LoRA that names none: PEFT's own choice for the architecture, or query and value.

    PEFT 0.21 makes its choice too late for a mixture of experts, and has none for many of them.
    """
    from peft import PeftType
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as CHOICES

    if peft_config.peft_type != PeftType.LORA or peft_config.target_modules or peft_config.target_parameters:
        return
    chosen = set(CHOICES.get(model.config.model_type, ("q_proj", "v_proj")))
    if chosen <= {name.rpartition(".")[2] for name, _ in model.named_modules()}:
        peft_config.target_modules = chosen


def exclude_known_heads(names: set[str]) -> list[str] | None:
    """Return `modules_to_save` without the two names that PEFT adds for SEQ_CLS at each load; `None` if empty."""
    return sorted(names - set(KNOWN_HEADS)) or None


@contextmanager
def suppress_peft_warning() -> Iterator[None]:
    """Hide a warning of transformers 5.23: PEFT reads gradient checkpointing under a name that is deprecated there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


def check_head_is_trained(model: "PeftModel") -> None:
    """Raise where the head of a PEFT model would not train in full, or not be saved.

    Raises:
        ModelError: The weight of the head requires no gradient, or the head has an adapter.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = model.get_base_model()
    parts = {name: base.get_submodule(name) for name in outside_backbone(base)}
    adapted = [name for name, part in parts.items() if any(isinstance(each, BaseTunerLayer) for each in part.modules())]
    if adapted:
        raise ModelError(
            f"the head ({', '.join(adapted)}) of this PeftModel has an adapter, on weights that are drawn anew at each "
            f"load. Build it with task_type='SEQ_CLS', or pass the base model and `peft_config` to the trainer: then "
            f"the head trains in full, and is saved."
        )
    if not any(base.get_submodule(name).weight.requires_grad for name in head_names(base)):
        raise ModelError(
            f"the head ({', '.join(head_names(base))}) of this PeftModel would neither train nor be saved, so its "
            f"scores would be random after a reload. Build it with task_type='SEQ_CLS', or pass the base model and "
            f"`peft_config` to the trainer; load a saved adapter with is_trainable=True."
        )


def is_peft_model(model: Any) -> "TypeGuard[PeftModel]":
    """Return whether a model is a `PeftModel`, without importing PEFT."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def can_mix_adapters(model: "PreTrainedModel | PeftModel") -> bool:
    """Return whether PEFT can run the adapters of a model in one batch (its `adapter_names`): plain LoRA and a head.

    DoRA and other variants cannot, nor can a saved module that is no linear layer. This is known before it is tried,
    since PEFT 0.21 leaves its hooks in the model when such a forward fails.
    """
    if not is_peft_model(model):
        return False
    from peft.tuners.lora import Embedding, Linear
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper

    def can_mix(module: Any) -> bool:
        if isinstance(module, BaseTunerLayer):
            is_plain = type(module) in (Linear, Embedding) or type(module).__module__ == "peft.tuners.lora.bnb"
            return is_plain and not module.lora_variant
        if isinstance(module, AuxiliaryTrainingWrapper):
            is_copy = isinstance(module, ModulesToSaveWrapper)
            return is_copy and isinstance(module.original_module, (nn.Linear, nn.Embedding))
        return True

    return all(map(can_mix, model.modules()))


def has_virtual_tokens(model: "PreTrainedModel | PeftModel") -> bool:
    """Return whether an adapter puts virtual tokens before every sequence, as prefix and prompt tuning do."""
    return is_peft_model(model) and any(config.is_prompt_learning for config in model.peft_config.values())


def base_model(model: Any) -> "PreTrainedModel":
    """Return the model itself, without the adapter around it."""
    return model.get_base_model() if is_peft_model(model) else model
