"""Merging an adapter into its base: one plain model that scores what the two scored together."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plaudit.checkpoint.atomic import recover, staged_folder
from plaudit.checkpoint.card import write_model_card
from plaudit.checkpoint.contract import write_contract
from plaudit.checkpoint.fingerprint import Fingerprint, rewards_as_saved, take_fingerprint
from plaudit.checkpoint.metadata import (
    describe_rendering,
    describe_versions,
    read_description,
    trained_in,
    write_description,
)
from plaudit.checkpoint.verify import Verification, verify_and_record
from plaudit.errors import ConfigError, ModelError
from plaudit.models.adapters import base_model
from plaudit.models.load import load_model, load_tokenizer
from plaudit.models.precision import compute_dtype
from plaudit.models.quantization import dequantize
from plaudit.models.reward_head import bind_reward_forward, head_names

__all__ = ["merge_adapter"]


def merge_adapter(
    adapter: str | Path, output: str | Path, *, dtype: str | None = None, trust_remote_code: bool = False
) -> Verification:
    """Merge an adapter into its base, save the whole model, and prove that it scores as the two did.

    A base that was quantised in training is dequantised first: the merged weights are those that the adapter was
    trained on, and not the ones the base had before.

    Args:
        adapter: The adapter's folder or hub id.
        output: Where to write the model; a new or an empty folder.
        dtype: Precision of the merged weights; what the base was trained in if `None`.
        trust_remote_code: Allow a model that ships its own code.

    Returns:
        What came of reloading the merged model and scoring the probes, against the adapter on its base.

    Raises:
        ConfigError: `output` holds something.
        ModelError: There is no adapter, or it is of a kind that cannot be merged.
        CheckpointError: The merged model does not score the same; it is kept.
    """
    adapter, output = str(adapter), Path(output)
    if adapter.startswith("~"):
        adapter = str(Path(adapter).expanduser())
    recover(output)  # a merge that was killed while it wrote
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output: '{output}' holds something already. Name a new folder.")
    said = read_description(adapter)
    model = load_model(
        adapter,
        model_init_kwargs={"dtype": trained_in(adapter)},
        trust_remote_code=trust_remote_code,
        is_trainable=False,
        new_head=False,
    )
    _check_mergeable(model, adapter)
    tokenizer = load_tokenizer(adapter, trust_remote_code=trust_remote_code)
    bind_reward_forward(base_model(model))
    conversational = said.get("rendering", {}).get("sequences", "conversations") == "conversations"
    before = _fingerprint(model, tokenizer, conversational)
    merged = dequantize(model).merge_and_unload()
    if dtype is not None:
        merged = merged.to(getattr(torch, dtype))
    rendering = describe_rendering(tokenizer, before.ids[0], conversational=conversational, max_length=None)
    description = {"rendering": rendering} | said | _describe(merged, before, adapter)
    with staged_folder(output) as folder:
        _write(folder, merged, tokenizer, description, output, adapter)
    return verify_and_record(output, trust_remote_code=trust_remote_code)


def _check_mergeable(model: "PreTrainedModel | PeftModel", adapter: str) -> None:
    if not isinstance(model, PeftModel):
        raise ModelError(f"{adapter} is a whole model, and no adapter: there is nothing to merge.")
    if any(config.is_prompt_learning for config in model.peft_config.values()):
        raise ModelError(f"{adapter}: prefix and prompt tuning add tokens and no weights, and cannot be merged.")


def _fingerprint(model: PeftModel, tokenizer: PreTrainedTokenizerBase, conversational: bool) -> Fingerprint:
    base = base_model(model)
    return take_fingerprint(
        lambda ids: rewards_as_saved(model, ids),
        tokenizer,
        conversational=conversational,
        dtype=compute_dtype(base),
        longest=getattr(base.config.get_text_config(), "max_position_embeddings", None),
    )


def _describe(merged: PreTrainedModel, before: Fingerprint, adapter: str) -> dict[str, Any]:
    return {
        "versions": describe_versions(),
        "merged_from": adapter,
        "head": {"name": head_names(merged)[0].split(".")[0], "trained_in": "float32"},
        "quantization": None,
        "fingerprint": before.as_json(),
    }


def _write(
    folder: Path,
    merged: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    description: dict[str, Any],
    output: Path,
    adapter: str,
) -> None:
    scale = description.get("rewards", {})
    merged.config.pad_token_id = merged.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    write_contract(merged.config, description["head"]["name"], scale.get("mean", 0.0), scale.get("std", 1.0))
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_description(folder, description)
    state = Path(adapter, "trainer_state.json")
    history = json.loads(state.read_text(encoding="utf-8"))["log_history"] if state.is_file() else []
    write_model_card(
        folder,
        model_name=output.name,
        location=str(output),
        base_model=None,
        dataset_name=None,
        rows=None,
        options={"merged_from": adapter},
        training_metrics=next((entry for entry in reversed(history) if "loss" in entry), {}),
        evaluation_metrics=next((entry for entry in reversed(history) if "eval_loss" in entry), {}),
        conversational=description["rendering"]["sequences"] == "conversations",
    )
