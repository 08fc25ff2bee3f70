"""Loading: a sequence classifier with one label and its tokenizer, from a folder or the hub."""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file, find_adapter_config_file
from transformers.utils import logging as transformers_logging

from plaudit.errors import ConfigError, ModelError
from plaudit.hub import reads_hub
from plaudit.models.loading_notice import loading_notice
from plaudit.models.precision import is_quantized_layer
from plaudit.models.quantization import check_head_not_quantized, exclude_head, quantization_config_from
from plaudit.models.reward_head import KNOWN_HEADS
from plaudit.models.saved_adapter import SavedAdapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["ADAPTER_HUB_OPTIONS", "embedding_rows", "grow_embedding", "load_model", "load_tokenizer", "max_positions"]

logger = logging.getLogger(__name__)

_DTYPES = ("auto", "bfloat16", "float16", "float32")
ADAPTER_HUB_OPTIONS = ("cache_dir", "revision", "subfolder", "token")  # those that PEFT's functions take
_HUB_OPTIONS = (*ADAPTER_HUB_OPTIONS, "code_revision", "force_download", "local_files_only", "trust_remote_code")


@reads_hub("name_or_path")
def load_model(
    name_or_path: str,
    *,
    model_init_kwargs: dict[str, Any] | None = None,
    trust_remote_code: bool = False,
    quantization_config: Any = None,
    is_trainable: bool = True,
    new_head: bool = True,
) -> "PreTrainedModel | PeftModel":
    """Load a sequence classifier with one label from a hub id, the folder of a model or that of a reward adapter.

    The weights load in float32 unless `model_init_kwargs["dtype"]` names another dtype: transformers 5 would take the
    dtype of the checkpoint, and AdamW on bf16 weights silently loses small updates. A base model gets a new head, drawn
    from the current random state; an existing head is kept.

    Args:
        name_or_path: A hub id or a folder.
        model_init_kwargs: Arguments of `from_pretrained`. `num_labels` is always 1 and cannot be overridden.
        trust_remote_code: Allow a model that ships its own code.
        quantization_config: The quantisation of the base model; the head is never quantised. For an adapter, the
            default is the quantisation that its `reward.json` records.
        is_trainable: Whether the weights of an adapter train on.
        new_head: Whether a checkpoint without a head gets a new one (training) or is refused (scoring).

    Raises:
        ConfigError: An option has a value that cannot work.
        ModelError: No model can be loaded from there, the architecture has no sequence classifier, or the checkpoint
            has a head of another size, or no head while `new_head` is false.
    """
    options = _load_options(model_init_kwargs, trust_remote_code, quantization_config)
    name = os.path.expanduser(name_or_path)  # a `Path` would turn ./model into the hub id model
    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise ModelError(f"{name}: no model could be loaded from there: there is no such folder.")
    hub = _only(options, ADAPTER_HUB_OPTIONS)
    try:
        adapter = find_adapter_config_file(name, **hub)
        config = AutoConfig.from_pretrained(name, **_only(options, _HUB_OPTIONS)) if adapter is None else None
    except (OSError, ValueError) as error:
        _check_no_ensemble(name, hub)
        here = "" if Path(name).is_dir() else " There is no folder of that name, and the hub gave none."
        raise ModelError(f"{name}: no model could be loaded from there ({_first_line(error)}).{here}") from error
    if adapter is not None:
        return _load_adapter(SavedAdapter.read(name, **hub), options, is_trainable)
    _check_architecture(config, name)
    _check_head(config, name, options, new_head)
    model, info = _from_pretrained(name, config, options)
    new = sorted({key.rpartition(".")[0] for key in info["missing_keys"]})
    if any(is_quantized_layer(model.get_submodule(each)) for each in new) and "quantization_config" in options:
        model, info = _from_pretrained(name, config, options, excluded=new)
    check_head_not_quantized(model, name, new)
    _report_keys(model, name, info, new_head)
    model.new_modules = new  # an adapter must save them, since a reload would draw other weights
    return model


def _check_no_ensemble(name: str, hub: dict[str, Any]) -> None:
    """Raise where there is an ensemble of models instead of a model."""
    with suppress(OSError):  # there is no such file or place
        cached_file(name, "ensemble.json", **hub)
        raise ModelError(
            f"{name} is an ensemble of several models, which its ensemble.json names, and no single model. Name one of "
            f"them, or make one model of them: `plaudit merge A B C --average --output FOLDER`. Commands that score "
            f"take the whole folder."
        )


def _load_options(
    model_init_kwargs: dict[str, Any] | None, trust_remote_code: bool, quantization_config: Any
) -> dict[str, Any]:
    """Return the arguments of `from_pretrained`, checked and with Plaudit's defaults."""
    options = dict(model_init_kwargs or {})
    if options.pop("num_labels", 1) != 1:
        raise ConfigError("model_init_kwargs['num_labels']: a reward model has exactly one label. Remove the entry.")
    options.setdefault("trust_remote_code", trust_remote_code)
    dtype = options.setdefault("dtype", options.pop("torch_dtype", "float32"))
    if isinstance(dtype, str) and dtype not in _DTYPES:
        raise ConfigError(f"model_init_kwargs['dtype']: expected one of {', '.join(_DTYPES)}, got {dtype!r}.")
    if isinstance(dtype, str) and dtype != "auto":
        options["dtype"] = getattr(torch, dtype)
    if quantization_config is not None:
        if "quantization_config" in options:
            raise ConfigError(
                "`quantization_config` is set both as an argument and in `model_init_kwargs`. Keep the argument."
            )
        options["quantization_config"] = quantization_config
    return options


def _only(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _load_adapter(saved: SavedAdapter, options: dict[str, Any], is_trainable: bool) -> "PeftModel":
    """Load an adapter on its base model; one of the two must have a head, since a new one would be random."""
    # The revision and the subfolder asked for are those of the adapter, not of its base.
    of_base = {name: value for name, value in options.items() if name not in ("code_revision", "revision", "subfolder")}
    if saved.config.revision:
        of_base["revision"] = saved.config.revision
    base = saved.config.base_model_name_or_path
    if saved.quantization is not None and not _is_quantized(base, of_base):
        of_base.setdefault("quantization_config", quantization_config_from(saved.quantization))
    try:
        model = load_model(base, model_init_kwargs=of_base, new_head=saved.has_head)
    except ModelError as error:
        reason = f"{saved.path} is an adapter on the base model {base}, which its adapter_config.json names."
        if not saved.has_head:
            reason = f"{saved.path}: this adapter has no reward head of one output, so its base must have one."
        raise ModelError(f"{reason} {error}") from error
    return saved.attach_to(model, is_trainable=is_trainable)


def _is_quantized(name: str, options: dict[str, Any]) -> bool:
    """Return whether the checkpoint of a base model is quantised itself."""
    try:
        config = AutoConfig.from_pretrained(name, **_only(options, _HUB_OPTIONS))
    except (OSError, ValueError):  # `load_model` reports it
        return False
    return getattr(config, "quantization_config", None) is not None


def _check_architecture(config: PretrainedConfig, name: str) -> None:
    known = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if known or "AutoModelForSequenceClassification" in (getattr(config, "auto_map", None) or {}):
        return
    raise ModelError(
        f"{name}: transformers has no sequence classifier for the architecture {config.model_type!r}, so it cannot "
        f"carry a reward head. Use a model whose family has an `AutoModelForSequenceClassification` class, such as "
        f"Qwen2, Qwen3, Llama, Mistral, Gemma, Phi-3 or GPT-NeoX (decoders), or BERT and ModernBERT (encoders)."
    )


def _check_head(config: PretrainedConfig, name: str, options: dict[str, Any], new_head: bool) -> None:
    """Raise where the checkpoint has a head of more than one label that is not to be replaced."""
    classifies = any("ForSequenceClassification" in architecture for architecture in config.architectures or ())
    if classifies and config.num_labels != 1 and not options.get("ignore_mismatched_sizes"):
        advice = (
            "Start from the base model, or set model_init_kwargs={'ignore_mismatched_sizes': True} to replace the head "
            "by a new one."
        )
        if not new_head:
            advice = "It tells classes apart, and gives no reward."
        raise ModelError(
            f"{name} has a head with {config.num_labels} labels, but reward models require `num_labels=1`. {advice}"
        )


def _from_pretrained(
    name: str, config: PretrainedConfig, options: dict[str, Any], *, excluded: Sequence[str] = ()
) -> tuple[Any, dict[str, Any]]:
    """Return the model, with the modules `excluded` from quantisation, and transformers' report of its keys."""
    if "quantization_config" in options:
        quantization_config = exclude_head(options["quantization_config"], config, excluded)
        options = options | {"quantization_config": quantization_config}
    head = getattr(config, "value_head_prefix", None)
    if head and head not in KNOWN_HEADS:  # OpenRLHF's option; transformers' decoders say `score`
        options = options | {"key_mapping": {rf"^{re.escape(head)}\.": "score."}}
    try:
        with _quiet_load_report(), loading_notice(name):
            model, info = AutoModelForSequenceClassification.from_pretrained(
                name, num_labels=1, output_loading_info=True, **options
            )
    except (OSError, SafetensorError) as error:  # the latter for a truncated file
        raise ModelError(f"{name}: its weights could not be loaded ({_first_line(error)}).") from error
    # Weights of another size are drawn anew as well if `ignore_mismatched_sizes` is set.
    drawn = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    return model, info | {"missing_keys": {*info["missing_keys"], *drawn}}


@contextmanager
def _quiet_load_report() -> Iterator[None]:
    """Hide transformers' table of missing and unexpected keys, of which `_report_keys` reports the relevant ones."""
    loading = transformers_logging.get_logger("transformers.modeling_utils")

    def is_error(record: logging.LogRecord) -> bool:  # a higher level would make transformers check its TP plan
        return record.levelno >= logging.ERROR

    loading.addFilter(is_error)
    try:
        yield
    finally:
        loading.removeFilter(is_error)


def _report_keys(model: "PreTrainedModel", name: str, info: dict[str, Any], new_head: bool) -> None:
    """Warn of missing and unexpected weights of the backbone; raise where the head is missing and may not be new."""
    backbone, kind = f"{model.base_model_prefix}.", type(model).__name__
    missing, unused = (
        sorted(key for key in info[keys] if key.startswith(backbone)) for keys in ("missing_keys", "unexpected_keys")
    )
    new = sorted(info["missing_keys"] - set(missing))
    if missing:
        logger.warning(
            "%s: %d weights of the backbone are not in the checkpoint and start at random, among them %s. Is it the "
            "right checkpoint for %s?", name, len(missing), ", ".join(missing[:5]), kind,
        )  # fmt: skip
    if unused:
        logger.warning(
            "%s: %d weights of the checkpoint have no place in %s and are left out, among them %s.", name, len(unused),
            kind, ", ".join(unused[:5]),
        )  # fmt: skip
    if new and not new_head:
        # The head of a language model and weights of the backbone are no candidates.
        other = sorted(key for key in info["unexpected_keys"] if key not in unused and not key.startswith("lm_head."))
        hint = ""
        if other:
            hint = (
                f" It does hold {', '.join(other[:5])}: if that is a linear head under another name, name it in "
                f'config.json: "value_head_prefix": "{other[0].rpartition(".")[0]}".'
            )
        raise ModelError(
            f"{name} is no reward model: its checkpoint has no head ({', '.join(new)}), and a random one would "
            f"give random scores. Train it first, or check the path.{hint}"
        )


@reads_hub("name_or_path")
def load_tokenizer(
    name_or_path: str, *, model_init_kwargs: dict[str, Any] | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer that is saved with a model.

    Args:
        name_or_path: A hub id or a folder.
        model_init_kwargs: The arguments of the model; those about the hub (`revision`, `token`, ...) apply here too.
        trust_remote_code: Allow a tokenizer that ships its own code.

    Raises:
        ModelError: There is no tokenizer. (From a folder that holds only a model, transformers silently makes an empty
            one, which turns every text into the same ids.)
    """
    hub = {"trust_remote_code": trust_remote_code} | _only(model_init_kwargs or {}, _HUB_OPTIONS)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **hub)
    except (OSError, ValueError) as error:
        raise ModelError(f"{name_or_path}: no tokenizer could be loaded ({_first_line(error)}).") from error
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):
        raise ModelError(f"{name_or_path}: there are no tokenizer files, or their vocabulary is empty.")
    return tokenizer


# Embeddings


def embedding_rows(model: "PreTrainedModel") -> int:
    """Return the number of rows of the input embedding."""
    weight = model.get_input_embeddings().weight
    return getattr(weight, "ds_shape", weight.shape)[0]  # the shape of a ZeRO-3 shard is (0,)


def max_positions(model: "PreTrainedModel") -> int | None:
    """Return the number of tokens that a model has positions for; `None` if its configuration does not name it.

    RoBERTa and its relatives count positions from one past the pad token's id: of 514 positions, 512 are for tokens.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return module.num_embeddings - int(module.padding_idx) - 1
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def grow_embedding(model: "PreTrainedModel", rows: int, *, frozen_base: bool, reason: str) -> None:
    """Grow the input embedding of a model, in place, where it has fewer than `rows` rows.

    Args:
        model: The model.
        rows: The number of rows needed.
        frozen_base: Whether the base weights are frozen or quantised: new rows would then not be saved.
        reason: The option or token that needs rows, for the message.

    Raises:
        ModelError: Rows are needed and `frozen_base` holds.
    """
    if rows <= embedding_rows(model):
        return
    if frozen_base:
        raise ModelError(
            f"{reason} needs {rows - embedding_rows(model)} more embedding rows, and the embedding cannot grow under "
            f"PEFT or quantisation, since an adapter would not carry the new rows."
        )
    model.resize_token_embeddings(rows, mean_resizing=False)
