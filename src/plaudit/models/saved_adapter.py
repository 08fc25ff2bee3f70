"""The files of an adapter: configuration, weights, and the quantisation of its base that `reward.json` records."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers.utils import cached_file

from plaudit.errors import ModelError
from plaudit.models.adapters import exclude_known_heads, suppress_peft_warning
from plaudit.models.reward_head import KNOWN_HEADS

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

__all__ = ["SavedAdapter"]

# PEFT repeats the initialisation of an adapter when it loads one. Others (PiSSA, OLoRA, CorDA, ...) take weights out of
# the base, which is then no longer that of the next adapter.
_KEEPING_THE_BASE = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter in a folder or on the hub, as Plaudit, TRL or plain PEFT save it.

    Attributes:
        path: The folder or hub id.
        config: The configuration of the adapter.
        weights: The weights under PEFT's names.
        quantization: The quantisation of the base, if there is a `reward.json` that describes it.
        hub: The hub options that the files were read with: `revision`, `subfolder`, `token`, `cache_dir`.
    """

    path: str
    config: "PeftConfig"
    weights: dict[str, torch.Tensor]
    quantization: dict[str, Any] | None
    hub: dict[str, Any]

    @classmethod
    def read(cls, path: str, **hub: Any) -> "SavedAdapter":
        """Read the files of an adapter; the arguments are the attributes of the same names.

        Raises:
            ModelError: The adapter has no weights, or does not name its base model.
        """
        from peft import PeftConfig
        from peft.utils import load_peft_weights

        config = PeftConfig.from_pretrained(path, **hub)
        if not config.base_model_name_or_path:
            raise ModelError(
                f"{path}: its adapter_config.json does not name the base model (`base_model_name_or_path`)."
            )
        try:
            weights = load_peft_weights(path, device="cpu", **hub)
        except (OSError, ValueError, SafetensorError) as error:  # the last for a truncated file
            raise ModelError(f"{path}: its adapter's weights could not be loaded ({error}).") from error
        try:
            metadata = cached_file(path, "reward.json", **hub)
        except OSError:  # there is none, or the hub does not answer
            metadata = None
        recorded = json.loads(Path(metadata).read_text(encoding="utf-8")) if metadata else {}
        return cls(path, config, weights, recorded.get("quantization"), hub)

    @property
    def has_head(self) -> bool:
        """True if the weights include a layer outside the backbone with one output, the reward head."""
        # PEFT writes this prefix before the name that a weight has in the model.
        prefix = "base_model." if self.config.is_prompt_learning else "base_model.model."
        known = {*KNOWN_HEADS, *(self.config.modules_to_save or ())}
        return any(
            key.removeprefix(prefix).split(".")[0] in known
            and "lora_" not in key
            and value.ndim == 2
            and len(value) == 1
            for key, value in self.weights.items()
        )

    def attach_to(self, model: "PreTrainedModel", *, is_trainable: bool) -> "PeftModel":
        """Attach the adapter to its base model.

        Args:
            model: A sequence classifier with one label.
            is_trainable: Whether the weights of the adapter train on.

        Raises:
            ModelError: The adapter is to train, and is prefix or prompt tuning, which PEFT loads for scoring only.
        """
        from peft import PeftModel

        if self.config.is_prompt_learning and is_trainable:
            raise ModelError(
                f"{self.path}: prefix and prompt tuning cannot train on: PEFT loads their adapters for scoring only."
            )
        config = self._classifier_config()
        with suppress_peft_warning():
            return PeftModel.from_pretrained(model, self.path, config=config, is_trainable=is_trainable, **self.hub)

    @property
    def shareable_base(self) -> tuple[Any, ...] | None:
        """A key that is equal for adapters that can lie on one loaded base; `None` for one that cannot share it."""
        config: Any = self.config
        if config.peft_type != "LORA" or config.bias != "none":  # PEFT holds one adapter with biases
            return None
        if config.init_lora_weights not in _KEEPING_THE_BASE or config.layer_replication:
            return None
        saved = tuple(sorted(config.modules_to_save or ()))
        return (config.base_model_name_or_path, config.revision, repr(self.quantization), self.has_head, saved)

    def add_to(self, model: "PeftModel", name: str) -> None:
        """Add the adapter to a model that has another one already, for scoring; `model.set_adapter` chooses.

        Args:
            model: A model whose adapter has the same `shareable_base`. Changed in place.
            name: The name of the adapter in the model.
        """
        config = self._classifier_config()
        config.inference_mode = True
        with suppress_peft_warning():
            model.add_adapter(name, config)
            model.load_adapter(self.path, name, **self.hub)

    def _classifier_config(self) -> "PeftConfig":
        from peft import TaskType

        config = copy.deepcopy(self.config)
        # Whatever task it was saved for, an adapter with a reward head is one of a sequence classifier.
        config.task_type = TaskType.SEQ_CLS if self.has_head else None
        if hasattr(config, "modules_to_save"):
            named = config.modules_to_save or ()
            held = {name for name in named if any(f".{name}." in key for key in self.weights)}
            config.modules_to_save = (exclude_known_heads(held) if self.has_head else sorted(held)) or None
        return config
