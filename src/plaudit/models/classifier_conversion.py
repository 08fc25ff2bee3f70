"""The conversion of a language model with a reward adapter into the sequence classifier the adapter was trained on."""

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils import find_adapter_config_file

from plaudit.errors import ModelError
from plaudit.models.adapters import Adapter, attach_adapter, detach_adapter
from plaudit.models.saved_adapter import SavedAdapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["is_language_model", "to_sequence_classifier"]


def is_language_model(model: "PreTrainedModel") -> bool:
    """Return whether a model ends in the head of a language model."""
    return model.get_output_embeddings() is not None


def to_sequence_classifier(model: "PeftModel", folders: Iterable[str]) -> "PeftModel":
    """Move a reward adapter from a language model onto the sequence classifier, with the head from its folder.

    A language model has no place for the head, so PEFT drops it when it loads the adapter, and the model does not name
    the folder that it came from. A folder is used only if the weights of its adapter are those on the model.

    Args:
        model: An adapter on a language model. It is taken apart: the new model gets its backbone, without a copy.
        folders: Folders that the adapter may have come from, such as that of the tokenizer.

    Returns:
        The adapter with equal weights, which train or not as before, on a sequence classifier with the saved head.

    Raises:
        ModelError: None of the folders holds this adapter and a head.
    """
    adapter = detach_adapter(model)
    saved = next((each for each in map(_read, folders) if each is not None and _is_same(adapter, each)), None)
    if saved is None:
        raise ModelError(
            "the model is a language model with an adapter and without a reward head, which PEFT leaves out there. "
            "Pass the adapter's folder itself, as a string: RewardTrainer(model='the/adapter/folder', ...), or load it "
            "with AutoPeftModelForSequenceClassification.from_pretrained('the/adapter/folder', num_labels=1, "
            "is_trainable=True)."
        )
    if not saved.head:
        raise ModelError(
            f"{saved.path}: this adapter has no reward head, so it is not one of a reward model. To train one from "
            f"it, merge it into its model first (`model.merge_and_unload()`, `save_pretrained`), and start from that."
        )
    classifier = _with_backbone_of(model.get_base_model(), saved.head)
    backbone = f"base_model.model.{classifier.base_model_prefix}."
    weights = {key: value for key, value in adapter.weights.items() if key.startswith(backbone)}
    weights |= {f"base_model.model.{key}": value for key, value in saved.head.items()}
    config = copy.deepcopy(saved.config)  # its `modules_to_save` names the head
    return attach_adapter(classifier, Adapter(adapter.name, config, weights, adapter.trains))


def _read(folder: str) -> SavedAdapter | None:
    try:
        return SavedAdapter.read(folder) if find_adapter_config_file(folder) is not None else None
    except (OSError, ValueError):
        return None


def _is_same(adapter: Adapter, saved: SavedAdapter) -> bool:
    shared = [(value, saved.weights[key]) for key, value in adapter.weights.items() if key in saved.weights]
    return bool(shared) and all(
        one.shape == other.shape and torch.equal(one.cpu(), other.to(one.dtype)) for one, other in shared
    )


def _with_backbone_of(model: "PreTrainedModel", head: dict[str, torch.Tensor]) -> "PreTrainedModel":
    """Make a sequence classifier with one label from the backbone of a model and the weights of a head."""
    model.config.num_labels = 1
    with torch.device("meta"):
        classifier: Any = AutoModelForSequenceClassification.from_config(model.config)
    name = classifier.base_model_prefix
    backbone = getattr(model, name, None)
    if type(backbone) is not type(getattr(classifier, name)):
        raise ModelError(
            f"the backbone of {type(model).__name__} is not that of {type(classifier).__name__}. Pass the adapter's "
            f"folder itself, as a string."
        )
    setattr(classifier, name, backbone)
    for key, value in head.items():
        module, _, parameter = key.rpartition(".")
        setattr(classifier.get_submodule(module), parameter, torch.nn.Parameter(value.to(model.device)))
    for attribute in ("is_quantized", "hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if attribute in vars(model):
            setattr(classifier, attribute, getattr(model, attribute))
    return classifier.train(model.training)
