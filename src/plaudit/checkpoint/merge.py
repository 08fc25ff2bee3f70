"""Merging an adapter into its base: one plain model that gives the scores of both together."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plaudit.checkpoint.atomic import new_folder, staged_folder
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
from plaudit.errors import ModelError
from plaudit.hub import reads_hub
from plaudit.models.adapters import base_model, has_virtual_tokens, is_peft_model
from plaudit.models.load import load_model, load_tokenizer, max_positions
from plaudit.models.member_heads import MemberHeads, attach_member_heads
from plaudit.models.precision import compute_dtype
from plaudit.models.quantization import dequantize
from plaudit.models.reward_head import attach_uncertainty, bind_reward_forward, head_names
from plaudit.models.saved_adapter import SavedAdapter

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["describe_plain_model", "load_as_trained", "merge_adapter", "merge_into_base", "save_plain_model"]


@reads_hub("adapter")
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
    model = load_as_trained(adapter, trust_remote_code)
    if not is_peft_model(model):
        raise ModelError(f"{adapter} is a whole model and not an adapter: there is nothing to merge.")
    tokenizer = load_tokenizer(adapter, trust_remote_code=trust_remote_code)
    recorded = read_metadata(adapter)
    heads = SavedHeads.read(adapter)
    if heads is not None:
        attach_member_heads(base_model(model), MemberHeads(heads.weight, heads.bias), is_trainable=False)
    metadata = recorded | describe_plain_model(model, tokenizer, recorded) | {"merged_from": adapter}
    attach_uncertainty(base_model(model), None)
    merged = merge_into_base(model, adapter)
    if dtype is not None:
        merged = merged.to(getattr(torch, dtype))
    with staged_folder(output) as folder:
        if heads is not None:
            heads.write(folder)
        save_plain_model(folder, merged, tokenizer, metadata, output, {"merged_from": adapter}, _last_metrics(adapter))
    return verify_and_record(output, trust_remote_code=trust_remote_code, reload=reload)


def load_as_trained(path: str, trust_remote_code: bool) -> "PreTrainedModel | PeftModel":
    """Load a model or an adapter on its base for scoring, in the precision that it had in training."""
    model = load_model(
        path,
        model_init_kwargs={"dtype": training_dtype(path)},
        trust_remote_code=trust_remote_code,
        is_trainable=False,
        new_head=False,
    )
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


def describe_plain_model(
    model: "PreTrainedModel | PeftModel", tokenizer: PreTrainedTokenizerBase, recorded: dict[str, Any]
) -> dict[str, Any]:
    """Return the entries of `reward.json` that a plain model has anew, among them the fingerprint of `model`.

    Args:
        model: The model with the rewards that the plain model must have.
        tokenizer: Its tokenizer.
        recorded: The former `reward.json`, whose entries of the rendering stay.
    """
    base, said = base_model(model), recorded.get("rendering") or {}
    conversational = said.get("sequences", "conversations") == "conversations"
    fingerprint = take_fingerprint(
        lambda ids: columns_as_saved(model, ids),
        tokenizer,
        conversational=conversational,
        dtype=compute_dtype(base),
        longest=max_positions(base),
    )
    rendering = rendering_metadata(tokenizer, fingerprint.ids[0], conversational=conversational, max_length=None)
    return {
        "versions": library_versions(),
        "rendering": rendering | said,
        "head": {"name": head_names(base)[0].split(".")[0], "trained_in": "float32"},
        "quantization": None,
        "fingerprint": fingerprint.as_json(),
    }


def save_plain_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    metadata: dict[str, Any],
    output: Path,
    options: dict[str, Any],
    metrics: tuple[dict[str, Any], dict[str, Any]] = ({}, {}),
) -> None:
    """Write a whole model into `folder` with its tokenizer, its contract, its `reward.json` and its card.

    Args:
        folder: The folder to write into.
        model: The model.
        tokenizer: Its tokenizer.
        metadata: The content of `reward.json`.
        output: The place that the folder will have, for the card.
        options: The origin of the model, for the card.
        metrics: The last metrics of training and of evaluation, for the card.
    """
    scale = metadata.get("rewards", {})
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    set_contract(model.config, metadata["head"]["name"], scale.get("mean", 0.0), scale.get("std", 1.0))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_metadata(folder, metadata)
    write_model_card(
        folder, model_name=output.name, location=str(output), options=options, training_metrics=metrics[0],
        evaluation_metrics=metrics[1], conversational=metadata["rendering"]["sequences"] == "conversations",
        members=metadata.get("members") or 0,
    )  # fmt: skip


def _last_metrics(adapter: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the last metrics of training and of evaluation, if the folder of an adapter has those of its run."""
    state = Path(adapter, "trainer_state.json")
    history = json.loads(state.read_text(encoding="utf-8"))["log_history"] if state.is_file() else []
    last: dict[str, dict[str, Any]] = {}
    for entry in history:
        last |= {name: entry for name in ("loss", "eval_loss") if name in entry}
    return last.get("loss", {}), last.get("eval_loss", {})
