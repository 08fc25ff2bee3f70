"""Quantised base models: their options, a head that is not quantised, and dequantisation."""

import copy
import json
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig, PretrainedConfig

from plaudit.errors import ConfigError, ModelError
from plaudit.models.adapters import base_model
from plaudit.models.precision import is_quantized_layer
from plaudit.models.reward_head import outside_backbone

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from plaudit.models.model_config import ModelConfig

__all__ = [
    "check_head_not_quantized",
    "dequantize",
    "describe_quantization",
    "exclude_head",
    "get_quantization_config",
    "quantization_config_from",
]

# The options in which a quantisation config lists the modules to leave as they are.
_EXCLUDING = ("llm_int8_skip_modules", "modules_to_not_convert")


def get_quantization_config(model_args: "ModelConfig") -> BitsAndBytesConfig | None:
    """Return the bitsandbytes configuration that the options of a script ask for; `None` if they ask for none."""
    if model_args.load_in_4bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=None if model_args.dtype == "auto" else model_args.dtype,
            bnb_4bit_quant_type=model_args.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=model_args.use_bnb_nested_quant,
            bnb_4bit_quant_storage=model_args.bnb_4bit_quant_storage,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if model_args.load_in_8bit else None


def exclude_head(quantization_config: Any, config: PretrainedConfig, others: Sequence[str] = ()) -> Any:
    """Return a copy of a quantisation config that excludes the head and all other layers outside the backbone.

    transformers excludes the last parameter only, which is the bias of a head that has one, and of a head of several
    layers only the last.

    Args:
        quantization_config: The user's; one that cannot name modules is returned as it is.
        config: The configuration of the model that will be loaded.
        others: Names of further modules to exclude.

    Raises:
        ConfigError: The config needs bitsandbytes, which is not installed.
    """
    if isinstance(quantization_config, BitsAndBytesConfig) and find_spec("bitsandbytes") is None:
        raise ConfigError("quantisation needs bitsandbytes: pip install 'plaudit[quantization]'")
    from transformers.quantizers.base import get_keys_to_not_convert

    name = next((name for name in _EXCLUDING if hasattr(quantization_config, name)), None)
    if name is None:
        return quantization_config
    config = copy.deepcopy(config)
    config.num_labels = 1
    with torch.device("meta"):
        empty = AutoModelForSequenceClassification.from_config(config)
    excluded = getattr(quantization_config, name)
    excluded = get_keys_to_not_convert(empty) if excluded is None else excluded
    quantization_config = copy.deepcopy(quantization_config)
    setattr(quantization_config, name, sorted({*excluded, *outside_backbone(empty), *others}))
    return quantization_config


def check_head_not_quantized(model: "PreTrainedModel", name: str, new: Sequence[str] = ()) -> None:
    """Raise where the head, another layer outside the backbone, or a new layer is quantised, so that it cannot train.

    Args:
        model: A sequence classifier.
        name: The name of its checkpoint, for the message.
        new: Names of the modules that the checkpoint lacks.

    Raises:
        ModelError: Such a layer is quantised.
    """
    for part in (*outside_backbone(model), *new):
        if any(is_quantized_layer(module) for module in model.get_submodule(part).modules()):
            raise ModelError(
                f"{name}: its checkpoint is quantised, and so would be `{part}`, which must train. Start from the "
                f"weights that are not quantised, and give `quantization_config`: `{part}` is then left as it is."
            )


def describe_quantization(model: "PreTrainedModel | PeftModel") -> dict[str, Any] | None:
    """Describe how the base model is quantised, in JSON values; `None` if it is not."""
    config = getattr(base_model(model).config, "quantization_config", None)
    if config is None:
        return None
    described = config if isinstance(config, dict) else config.to_dict()
    return json.loads(json.dumps({name: value for name, value in described.items() if not name.startswith("_")}))


def quantization_config_from(description: dict[str, Any]) -> Any:
    """Return the quantisation config for a description of `describe_quantization`.

    Raises:
        ModelError: transformers knows no such quantisation.
    """
    from transformers.quantizers.auto import AutoQuantizationConfig

    try:
        return AutoQuantizationConfig.from_dict(dict(description))
    except (TypeError, ValueError) as error:
        raise ModelError(f"the description of the quantisation cannot be read ({error}).") from error


def dequantize(model: "PreTrainedModel") -> "PreTrainedModel":
    """Replace the quantised weights of a model without an adapter by plain weights of the same, rounded values.

    Args:
        model: A sequence classifier with or without quantised layers. Changed in place, and returned.
    """
    if getattr(model, "is_quantized", False):
        model.dequantize()
        for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):  # PEFT and accelerate read these
            vars(model).pop(flag, None)
    return model
