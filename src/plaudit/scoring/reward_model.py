"""`RewardModel`: the scorer of texts and conversations, in the form in which the model was trained."""

import logging
import os
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from plaudit.checkpoint.ensemble_file import SavedEnsemble
from plaudit.checkpoint.metadata import (
    HUB_OPTIONS,
    fingerprint_digest,
    library_versions,
    read_metadata,
    rendering_metadata,
    template_hash,
    training_dtype,
)
from plaudit.data.formats import TextOrChat, read_sequence
from plaudit.data.render import render
from plaudit.data.truncation import cut_left
from plaudit.engine import ScoringEngine
from plaudit.errors import ConfigError, DataError
from plaudit.hub import reads_hub
from plaudit.models.adapters import base_model, is_peft_model
from plaudit.models.load import load_model, load_tokenizer, max_positions
from plaudit.models.placement import resolve_device, without_sharding
from plaudit.models.quantization import describe_quantization
from plaudit.scoring.base_reward_model import BaseRewardModel, ChunkScoring, ScoredSequences
from plaudit.scoring.saved_uncertainty import attach_saved_uncertainty
from plaudit.uncertainty import Uncertainty

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from plaudit.scoring.ensemble_engine import EnsembleEngine

__all__ = ["RewardModel"]

logger = logging.getLogger(__name__)


# The common prefix is long enough to be shared.
_STORY = "The ferry leaves the harbour at nine, and the captain counts the passengers one by one. " * 4
_PROBES = [_STORY + end for end in ("Nobody is late.", "Two are late, and wave from the pier.", "")]


class RewardModel(BaseRewardModel):
    """A trained reward model and its tokenizer.

    Args:
        model: A sequence classifier with one label, or a PEFT model of one.
        tokenizer: The tokenizer of the model, with a chat template if conversations are to be scored.
        max_tokens_per_batch: Distinct tokens that run at once (in padded batches: positions); a prompt that several
            sequences begin with counts once.
        max_length: The most tokens of a sequence; as many as the model has positions if `None`.
        overlong: "truncate" cuts a longer sequence from the left, never the end of the response, and reports how many
            were truncated; "error" raises.
        scale: Mean and standard deviation of the rewards, for `normalize=True`.
        temperature: Divisor of the rewards that makes probabilities fit the data it was fitted to, for
            `calibrated=True`.
        trained_on: "texts" or "conversations", if known: a sequence of the other form brings one warning.
        uncertainty: How to read the columns beside the reward, if the model has any. `from_pretrained` attaches the
            members or the posterior that are saved beside the weights, with these constants for the saved ones; with
            `None` it leaves them unread.

    Attributes:
        name: The folder or hub id that the model was loaded from.
        fingerprint: Digest of the fingerprint that was saved with the model, by which models are told apart.
    """

    def __init__(
        self,
        model: "PreTrainedModel | PeftModel",
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_tokens_per_batch: int = 4096,
        max_length: int | None = None,
        overlong: str = "truncate",
        scale: tuple[float, float] | None = None,
        temperature: float | None = None,
        trained_on: str | None = None,
        uncertainty: Uncertainty | None = None,
    ) -> None:
        if overlong not in ("truncate", "error"):
            raise ConfigError(f"overlong: expected one of truncate, error, got {overlong!r}.")
        if max_tokens_per_batch < 1:
            raise ConfigError(f"max_tokens_per_batch: expected a whole number above 0, got {max_tokens_per_batch!r}.")
        if max_length is not None and max_length < 2:
            raise ConfigError(f"max_length: expected a whole number above 1, got {max_length!r}.")
        self.engine: ScoringEngine | EnsembleEngine = ScoringEngine(model, max_tokens_per_batch)
        if uncertainty is not None and uncertainty.num_columns != self.engine.num_columns:
            raise ConfigError(
                f"uncertainty: expected constants of the {self.engine.num_columns} columns that the model gives, got "
                f"those of {uncertainty.num_columns}."
            )
        self.tokenizer = tokenizer
        self.max_length, self.overlong = max_length or max_positions(base_model(model)), overlong
        self.scale, self.trained_on, self.truncated = scale, trained_on, 0
        self.temperature, self.uncertainty = temperature, uncertainty
        self.fingerprint: str | None = None
        self.name = str(base_model(model).name_or_path)

    @property
    def model(self) -> "PreTrainedModel | PeftModel":
        """The model, with its adapter if it has one."""
        return self.engine.model

    @classmethod
    @reads_hub("path_or_id")
    def from_pretrained(
        cls,
        path_or_id: str | Path | Sequence[str | Path],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        trust_remote_code: bool = False,
        allow_random_head: bool = False,
        model_init_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> "RewardModel":
        """Load a reward model of Plaudit, TRL or OpenRLHF.

        Args:
            path_or_id: A folder, the folder of an adapter, or a hub id; the folder of `plaudit ensemble`; or a list of
                two or more models, which score as one ensemble: the reward is the mean of theirs.
            device: The device to run the model on; an accelerator if there is one, else the CPU.
            dtype: Precision of the weights; if `None` or "auto", that of the checkpoint, and for the base of an adapter
                that of training.
            trust_remote_code: Allow a model or tokenizer that ships its own code.
            allow_random_head: Score even where the checkpoint has no head, with a random one and a warning.
            model_init_kwargs: Further arguments of transformers' `from_pretrained`, such as `revision`.
            **options: Arguments of the constructor.

        Raises:
            ModelError: The checkpoint is no reward model, or its tokenizer is missing.
            ConfigError: An option or the device does not exist.
            CheckpointError: A file is damaged, or the members of an ensemble are missing or have changed.
        """
        _check_options(options, list(signature(cls).parameters)[2:])
        device = resolve_device(device)
        shared = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
        shared |= {"allow_random_head": allow_random_head, "model_init_kwargs": model_init_kwargs} | options
        if not isinstance(path_or_id, (str, Path)):
            return _load_ensemble(list(path_or_id), None, shared)
        name = os.path.expanduser(path_or_id)
        hub = {option: value for option, value in (model_init_kwargs or {}).items() if option in HUB_OPTIONS}
        metadata = read_metadata(name, **hub)
        # The folder of an ensemble has a `reward.json` without `rendering`, or none; a look-up on the hub is spared.
        if "rendering" not in metadata and (saved := SavedEnsemble.read(name, **hub)):
            calibration = metadata.get("calibration") or {}  # of `plaudit eval --save_temperature`
            shared.setdefault("temperature", calibration.get("temperature"))
            ensemble = _load_ensemble(list(saved.members), saved, shared)
            ensemble.name = name
            return ensemble
        if dtype is None or dtype == "auto":
            dtype = training_dtype(name, **hub)
        loading = {"dtype": dtype} | (model_init_kwargs or {})
        with without_sharding():
            model = load_model(
                name, model_init_kwargs=loading, trust_remote_code=trust_remote_code, is_trainable=False,
                new_head=allow_random_head,
            )  # fmt: skip
        if getattr(base_model(model), "new_modules", None) and not is_peft_model(model):
            logger.warning("%s has no reward head: its scores are RANDOM", name)
        if not getattr(base_model(model), "hf_device_map", None):
            model = model.to(device)
        tokenizer = load_tokenizer(name, model_init_kwargs=loading, trust_remote_code=trust_remote_code)
        rendering = metadata.get("rendering") or {}
        if rendering and rendering["chat_template"] != template_hash(tokenizer):
            logger.warning(
                "%s: the chat template is not the one that the model was trained with, so its scores differ. Put that "
                "template back; `plaudit verify` shows the difference.", name,
            )  # fmt: skip
        options.setdefault("scale", _saved_scale(metadata, base_model(model).config))
        options.setdefault("temperature", (metadata.get("calibration") or {}).get("temperature"))
        options.setdefault("trained_on", rendering.get("sequences"))
        if options.get("uncertainty", "saved") is not None:
            saved_uncertainty = attach_saved_uncertainty(model, name, metadata.get("members"), **hub)
            options.setdefault("uncertainty", saved_uncertainty)
        loaded = cls(model, tokenizer, **options)
        loaded.name = name  # the configuration of an adapter names its base
        if metadata.get("fingerprint"):
            loaded.fingerprint = fingerprint_digest(metadata["fingerprint"])
        return loaded

    def __repr__(self) -> str:
        return f"RewardModel({self.name!r}, {type(base_model(self.model)).__name__} on {self.model.device})"

    def begin_call(self, normalize: bool) -> ChunkScoring:
        """Return a function that scores the chunks of one call of `score` or `stream`, in their order.

        Args:
            normalize: Subtract the mean and divide by the standard deviation that were saved with the model.

        Raises:
            ConfigError: `normalize` is set, and the model was saved without a scale.
        """
        mean, std = self.normalization() if normalize else (0.0, 1.0)

        def score_chunk(
            sequences: list[TextOrChat],
            options: list[dict[str, Any]] | None,
            names: list[str],
            on_scored: Callable[[int], object],
        ) -> ScoredSequences:
            whole = self._render(sequences, options, names)
            ids = [self._truncate(each, name) for each, name in zip(whole, names, strict=True)]
            columns = self.engine.score_columns(ids, on_scored)
            rewards = columns[:, 0]
            if normalize:
                rewards = ((rewards - mean) / std).astype(np.float32)
            tokens = np.array([len(each) for each in ids], dtype=np.int64)
            truncated = tokens < np.array([len(each) for each in whole])
            return ScoredSequences(rewards, tokens, truncated, columns, self.uncertainty, std)

        return score_chunk

    def token_ids(
        self,
        sequences: list[TextOrChat],
        options: list[dict[str, Any]] | None = None,
        names: list[str] | None = None,
    ) -> list[list[int]]:
        """Render N whole texts or conversations as the token ids that `engine.score` takes, truncated where too long.

        Args:
            sequences: N texts or conversations.
            options: N dicts of keyword arguments for the chat template, if any.
            names: N names for error messages; "row 3" and the like if `None`.

        Raises:
            DataError: A sequence is malformed, refused by the chat template, or too long while `overlong` is "error".
        """
        names = [f"row {number}" for number in range(len(sequences))] if names is None else names
        whole = self._render(sequences, options, names)
        return [self._truncate(each, name) for each, name in zip(whole, names, strict=True)]

    def _render(
        self, sequences: list[TextOrChat], options: list[dict[str, Any]] | None, names: list[str]
    ) -> list[list[int]]:
        read = [read_sequence(sequence, name) for sequence, name in zip(sequences, names, strict=True)]
        ids = render(self.tokenizer, read, options, names=names)
        special = set(self.tokenizer.all_special_ids)
        self._warn_of_other_form(read, names, lambda index: special.intersection(ids[index][1:-1]))
        return ids

    def warm_up(self) -> list[int]:
        """Score three built-in texts, so that the layout of batches is chosen and the model has run.

        Returns:
            The token ids of one of the texts.
        """
        ids = [each[: self.max_length] for each in render(self.tokenizer, _PROBES)]
        self.engine.score(ids)
        return ids[-1]

    def describe(self, sequence: TextOrChat) -> dict[str, Any]:
        """Return the properties that decide the rewards, in JSON values, for the header of a score file.

        Args:
            sequence: A text or conversation of the kind that is scored; it shows which special tokens are added.
        """
        config = base_model(self.model).config
        ids = render(self.tokenizer, [sequence])[0]
        rendering = rendering_metadata(
            self.tokenizer, ids, conversational=not isinstance(sequence, str), max_length=self.max_length
        )
        return {
            "model": self.name,
            "fingerprint": self.fingerprint,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "attention": getattr(config, "_attn_implementation", None),
            "layout": self.engine.layout,
            "quantization": describe_quantization(self.model),
            "chat_template": rendering["chat_template"],
            "bos": rendering["bos"],
            "eos": rendering["eos"],
            "max_length": self.max_length,
            "versions": library_versions(),
        }

    def _truncate(self, ids: list[int], name: str) -> list[int]:
        if self.max_length is None or len(ids) <= self.max_length:
            return ids
        if self.overlong == "error":
            raise DataError(
                f"{name} has {len(ids):,} tokens, more than {self.max_length:,}. Shorten it, or set "
                f"`overlong='truncate'`."
            )
        self.truncated += 1
        return cut_left(ids, self.max_length, (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id))

    def normalization(self) -> tuple[float, float]:
        """Return the mean and standard deviation of the rewards that were saved with the model.

        Raises:
            ConfigError: They were not saved.
        """
        if self.scale is None or not self.scale[1] > 0:
            raise ConfigError(
                "normalize: the model was saved without the mean and standard deviation of its rewards. Pass "
                "`scale=(mean, std)`, or leave `normalize` out."
            )
        return self.scale

    def _saved_temperature(self) -> float:
        if self.temperature is None:
            raise ConfigError(
                "calibrated: the model was saved without a temperature. `plaudit eval MODEL DATA --save_temperature` "
                "fits one and writes it into reward.json; or pass `temperature=`, or leave `calibrated` out."
            )
        return self.temperature


def _load_ensemble(members: list[str | Path], saved: SavedEnsemble | None, options: dict[str, Any]) -> RewardModel:
    from plaudit.scoring.ensemble import load_ensemble  # late, since it loads each member by this file

    return load_ensemble(members, saved=saved, **options)


def _check_options(options: dict[str, Any], known: list[str]) -> None:
    """Refuse an option that the constructor does not have before anything is loaded."""
    if unknown := [option for option in options if option not in known]:
        raise ConfigError(
            f"RewardModel.from_pretrained has no option {unknown[0]!r}, only {', '.join(known)} beside its own. "
            f"What transformers' `from_pretrained` takes goes into model_init_kwargs={{{unknown[0]!r}: ...}}."
        )


def _saved_scale(metadata: dict[str, Any], config: Any) -> tuple[float, float] | None:
    """Return the saved mean and standard deviation; 0 and 1 mean that they were not measured."""
    rewards = metadata.get("rewards") or {"mean": getattr(config, "mean", 0.0), "std": getattr(config, "std", 1.0)}
    scale = rewards["mean"], rewards["std"]
    return None if scale == (0.0, 1.0) else scale
