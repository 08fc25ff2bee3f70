"""Weight averaging: several reward models of one architecture to one plain model of their mean weights."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from plaudit.checkpoint.atomic import new_folder, staged_folder
from plaudit.checkpoint.member_agreement import SavedMember, check_agreement
from plaudit.checkpoint.merge import describe_plain_model, load_as_trained, merge_into_base, save_plain_model
from plaudit.checkpoint.verify import Reload, Verification, verify_and_record
from plaudit.errors import ConfigError, ModelError
from plaudit.hub import reads_hub
from plaudit.models.adapters import is_peft_model
from plaudit.models.quantization import dequantize
from plaudit.models.reward_head import bind_reward_forward

__all__ = ["average_models"]

logger = logging.getLogger(__name__)


@reads_hub("members")
def average_models(
    members: Sequence[str | Path],
    output: str | Path,
    *,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    reload: Reload | None = None,
) -> Verification:
    """Average the weights of reward models, heads included, save the one model that results, and verify it.

    The mean is taken in float32 (A. Ramé et al., "WARM: On the Benefits of Weight Averaged Reward Models", arXiv
    2401.12187, who start all members from the same weights and the same head). An adapter is merged into its base
    first, so that the products BA are averaged and not the factors, and ranks may differ. Two models are in memory at
    a time. The model no longer shows where its members disagreed.

    Args:
        members: Folders or hub ids of whole models or of adapters, at least two.
        output: The folder to write the model to; new or empty.
        dtype: Precision of the weights; by default that of the first member.
        trust_remote_code: Allow a model that ships its own code.
        reload: As for `plaudit.checkpoint.verify.verify`.

    Returns:
        The verification of the model against its rewards before it was saved.

    Raises:
        ConfigError: `output` is not empty, or there are fewer than two members.
        ModelError: Members have other weights in name or size, read text in two ways, or cannot be loaded.
        CheckpointError: The saved model does not score the same (its files are kept), or the disk is full.
    """
    paths, output = [os.path.expanduser(path) for path in members], new_folder(output)
    if len(paths) < 2:
        raise ConfigError(f"--average: expected two or more models, got {len(paths)}.")
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise ConfigError(f"{twice[0]} is named twice: each model counts once in the average. Name it once.")
    read = [SavedMember.read(path, trust_remote_code=trust_remote_code) for path in paths]
    check_agreement(read)
    model = _mean_model(paths, None if dtype is None else getattr(torch, dtype), trust_remote_code)
    origin = [{"path": each.path, "fingerprint": each.digest} for each in read]
    recorded = {"rendering": read[0].rendering}
    metadata = describe_plain_model(model, read[0].tokenizer, recorded) | {"averaged_from": origin}
    with staged_folder(output) as folder:
        save_plain_model(folder, model, read[0].tokenizer, metadata, output, {"averaged_from": paths})
    logger.warning(
        "%s is one model: it no longer shows where its %d members disagree. `plaudit ensemble` keeps them apart; "
        "`plaudit eval` tells what the mean of the weights is worth.", output, len(paths),
    )  # fmt: skip
    return verify_and_record(output, trust_remote_code=trust_remote_code, reload=reload)


@torch.no_grad()
def _mean_model(paths: list[str], dtype: torch.dtype | None, trust_remote_code: bool) -> PreTrainedModel:
    """Return the first model with the mean weights of all, in its own precision unless `dtype` names another."""
    mean = _load_whole(paths[0], trust_remote_code)
    dtypes = {name: tensor.dtype for name, tensor in mean.state_dict().items()}
    mean = mean.float()
    for number, path in enumerate(paths[1:], 2):
        other = _load_whole(path, trust_remote_code).state_dict()
        _check_same_weights(mean.state_dict(), other, paths[0], path)
        # A tensor that has two names, as tied weights do, is averaged once.
        done: set[int] = set()
        for name, tensor in mean.state_dict().items():
            if tensor.is_floating_point() and tensor.data_ptr() not in done:
                tensor.add_((other[name].float() - tensor) / number)
                done.add(tensor.data_ptr())
        del other  # before the next model is loaded
    for name, parameter in mean.named_parameters():
        parameter.data = parameter.data.to(dtype or dtypes[name])
    for name, buffer in mean.named_buffers():
        if buffer.is_floating_point() and name in dtypes:
            buffer.data = buffer.data.to(dtype or dtypes[name])
    return mean


def _load_whole(path: str, trust_remote_code: bool) -> PreTrainedModel:
    """Load a whole model, or an adapter merged into its base, with plain weights."""
    model = load_as_trained(path, trust_remote_code)
    if is_peft_model(model):
        model = merge_into_base(model, path)
    elif getattr(model, "is_quantized", False):
        model = dequantize(model)
    bind_reward_forward(model)  # of the layers that are new
    return model


def _check_same_weights(first: dict[str, Any], other: dict[str, Any], path: str, other_path: str) -> None:
    """Raise unless two models have the same weights in name and size."""
    for name in sorted(first.keys() | other.keys()):
        shapes = [list(each[name].shape) if name in each else "none" for each in (first, other)]
        if shapes[0] != shapes[1]:
            raise ModelError(
                f"weights can be averaged of models of one architecture only: {name} is {shapes[0]} in {path} and "
                f"{shapes[1]} in {other_path}. `plaudit ensemble` joins models of different sizes."
            )
