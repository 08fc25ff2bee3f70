"""Merging an adapter into its base: one plain model that gives the scores of both together."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plaudit.checkpoint.atomic import recover, staged_folder
from plaudit.checkpoint.card import write_model_card
from plaudit.checkpoint.fingerprint import columns_as_saved, take_fingerprint
from plaudit.checkpoint.heads_file import SavedHeads
from plaudit.checkpoint.metadata import (
    library_versions,
    read_metadata,
    rendering_metadata,
    set_contract,
    training_dtype,
    write_metadata,
)
from plaudit.checkpoint.verify import Reload, Verification, verify_and_record
from plaudit.errors import ConfigError, ModelError
from plaudit.models.adapters import base_model, has_virtual_tokens, is_peft_model
from plaudit.models.load import load_model, load_tokenizer, max_positions
from plaudit.models.member_heads import MemberHeads, attach_member_heads
from plaudit.models.precision import compute_dtype
from plaudit.models.quantization import dequantize
from plaudit.models.reward_head import attach_uncertainty, bind_reward_forward, head_names
from plaudit.models.saved_adapter import SavedAdapter

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["merge_adapter", "merge_into_base", "new_folder", "save_plain_model"]


def merge_adapter(
    adapter: str | Path,
    output: str | Path,
    *,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    reload: Reload | None = None,
) -> Verification:
    """Merge an adapter into its base, save the whole model, and verify that it scores as both did together.

    A base that was quantised in training is dequantised first: the adapter was trained on those weights, and not on the
    ones before quantisation.

    Args:
        adapter: The adapter's folder or hub id.
        output: The folder to write the model to; new or empty.
        dtype: Precision of the merged weights; by default the one the base had in training.
        trust_remote_code: Allow a model that ships its own code.
        reload: As for `plaudit.checkpoint.verify.verify`.

    Returns:
        The verification of the merged model against the rewards of the adapter on its base.

    Raises:
        ConfigError: `output` is not empty.
        ModelError: `adapter` is no adapter, or of a kind that cannot be merged.
        CheckpointError: The merged model does not score the same (its files are kept), or the disk is full.
    """
    adapter, output = os.path.expanduser(adapter), new_folder(output)
    model = _load(adapter, trust_remote_code)
    tokenizer = load_tokenizer(adapter, trust_remote_code=trust_remote_code)
    recorded = read_metadata(adapter)
    conversational = recorded.get("rendering", {}).get("sequences", "conversations") == "conversations"
    heads = SavedHeads.read(adapter)
    if heads is not None:
        attach_member_heads(base_model(model), MemberHeads(heads.weight, heads.bias), is_trainable=False)
    fingerprint = take_fingerprint(
        lambda ids: columns_as_saved(model, ids),
        tokenizer,
        conversational=conversational,
        dtype=compute_dtype(base_model(model)),
        longest=max_positions(base_model(model)),
    )
    attach_uncertainty(base_model(model), None)
    merged = merge_into_base(model, adapter)
    if dtype is not None:
        merged = merged.to(getattr(torch, dtype))
    rendering = rendering_metadata(tokenizer, fingerprint.ids[0], conversational=conversational, max_length=None)
    changed = {
        "versions": library_versions(),
        "merged_from": adapter,
        "head": {"name": head_names(merged)[0].split(".")[0], "trained_in": "float32"},
        "quantization": None,
        "fingerprint": fingerprint.as_json(),
    }
    metadata = {"rendering": rendering} | recorded | changed
    with staged_folder(output) as folder:
        save_plain_model(folder, merged, tokenizer, metadata)
        if heads is not None:
            heads.write(folder)
        _write_card(folder, output, adapter, metadata)
    return verify_and_record(output, trust_remote_code=trust_remote_code, reload=reload)


def new_folder(output: str | Path) -> Path:
    """Return the path of a folder that a model is to be written to.

    Raises:
        ConfigError: The folder is there and not empty, or is a file.
    """
    output = Path(output)
    recover(output)  # an earlier merge may have been killed while it wrote
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output: '{output}' is not empty. Name a new folder.")
    return output


def _load(adapter: str, trust_remote_code: bool) -> "PeftModel":
    model = load_model(
        adapter,
        model_init_kwargs={"dtype": training_dtype(adapter)},
        trust_remote_code=trust_remote_code,
        is_trainable=False,
        new_head=False,
    )
    if not is_peft_model(model):
        raise ModelError(f"{adapter} is a whole model and not an adapter: there is nothing to merge.")
    bind_reward_forward(base_model(model))
    return model


def merge_into_base(model: "PeftModel", adapter: str) -> PreTrainedModel:
    """Merge an adapter, on a dequantised base: PEFT would quantise the merged weights again.

    Args:
        model: The adapter on its base. Changed in place.
        adapter: The folder or hub id of the adapter, to attach it to a dequantised base.

    Raises:
        ModelError: Prefix and prompt tuning add tokens and no weights.
    """
    if has_virtual_tokens(model):
        raise ModelError(f"{adapter}: prefix and prompt tuning add tokens and no weights, and cannot be merged.")
    if getattr(base_model(model), "is_quantized", False):
        model = SavedAdapter.read(adapter).attach_to(dequantize(model.unload()), is_trainable=False)
    return model.merge_and_unload()


def save_plain_model(
    folder: Path, merged: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, metadata: dict[str, Any]
) -> None:
    """Write a whole model with its tokenizer, its contract and its `reward.json` into a folder."""
    scale = metadata.get("rewards", {})
    merged.config.pad_token_id = merged.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    set_contract(merged.config, metadata["head"]["name"], scale.get("mean", 0.0), scale.get("std", 1.0))
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_metadata(folder, metadata)


def _write_card(folder: Path, output: Path, adapter: str, metadata: dict[str, Any]) -> None:
    """Write the model card, with the figures of the adapter's training if its folder has them."""
    state = Path(adapter, "trainer_state.json")
    history = json.loads(state.read_text(encoding="utf-8"))["log_history"] if state.is_file() else []
    write_model_card(
        folder,
        model_name=output.name,
        location=str(output),
        options={"merged_from": adapter},
        training_metrics=next((entry for entry in reversed(history) if "loss" in entry), {}),
        evaluation_metrics=next((entry for entry in reversed(history) if "eval_loss" in entry), {}),
        conversational=metadata["rendering"]["sequences"] == "conversations",
    )
