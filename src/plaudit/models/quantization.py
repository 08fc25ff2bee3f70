"""Quantised base models: the options of a script."""

from typing import TYPE_CHECKING, Any

from transformers import BitsAndBytesConfig, PreTrainedModel

if TYPE_CHECKING:
    from plaudit.models.options import ModelConfig

__all__ = ["get_quantization_config"]


def get_quantization_config(model_args: "ModelConfig") -> BitsAndBytesConfig | None:
    """The bitsandbytes configuration that a script's options ask for, or `None`."""
    if model_args.load_in_4bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=None if model_args.dtype == "auto" else model_args.dtype,
            bnb_4bit_quant_type=model_args.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=model_args.use_bnb_nested_quant,
            bnb_4bit_quant_storage=model_args.bnb_4bit_quant_storage,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if model_args.load_in_8bit else None


def describe_quantization(model: PreTrainedModel) -> dict[str, Any] | None:
    """What `reward.json` says of the base model's quantisation."""
    config = getattr(model.config, "quantization_config", None)
    return None if config is None else config.to_dict()


def dequantized(model: Any) -> Any:
    """The model with plain weights."""
    return model
