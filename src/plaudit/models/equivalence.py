"""A probe that compares two batch layouts of a model: the same sequences, scored in both, must get equal rewards."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from plaudit.errors import ModelError
from plaudit.forest.trie import SHARED_TOKENS
from plaudit.models.adapters import base_model, has_virtual_tokens
from plaudit.models.load import max_positions
from plaudit.models.precision import compute_dtype, in_float32, rounding_tolerance, rounds_inputs
from plaudit.models.reward_head import has_reward_forward, reads_last_position

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["layouts_differ", "probe_size", "reason_for_padding", "settle_layout"]

logger = logging.getLogger(__name__)

_PROBED_SEQUENCES = 4
_MAX_PROBE_POSITIONS = 1 << 13
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def reason_for_padding(model: "PreTrainedModel | PeftModel") -> str | None:
    """Return the reason why the class or configuration of a model rules the forest out; `None` if nothing does."""
    base = base_model(model)
    if not reads_last_position(base):
        return f"{type(base).__name__} is an encoder: every token sees every other"
    if has_virtual_tokens(model):
        return "prefix and prompt tuning put virtual tokens before every sequence"
    from plaudit.forest.attention import unsupported_reason  # late, since it imports the code of transformers' models

    return unsupported_reason(base)


def probe_size(lengths: Sequence[int]) -> int:
    """Return how many of the first sequences to compare layouts on: two, or more while padded they take 8192 positions.

    Args:
        lengths: Tokens of each sequence.
    """
    longest = np.maximum.accumulate(np.asarray(lengths))
    fitting = longest * np.arange(1, len(longest) + 1) <= _MAX_PROBE_POSITIONS
    return max(int(fitting.sum()), min(2, len(longest)))


def layouts_differ(
    model: "PreTrainedModel | PeftModel",
    score: Callable[[str, bool], torch.Tensor],
    *,
    dtype: torch.dtype,
    can_use_float32: bool = True,
    reference: str = "padded",
    candidate: str = "forest",
) -> str | None:
    """Return the reason why the candidate layout must not be used, or `None` if it scores like the reference layout.

    The rewards of both layouts must agree up to rounding (see `rounding_tolerance`). Where rounding in a narrow `dtype`
    could hide a difference, or flip the choice of an expert, they are compared with the weights in float32. A
    difference counts only if a second measurement of both layouts confirms it: the first forward pass of a process was
    off by 1e-4 where MKL's first call raced (see `plaudit.models.precision.settle_vector_kernels`).

    Args:
        model: The model that `score` runs.
        score: `score(layout, float32)` returns the rewards [N] of the N sequences of the probe in a layout. Where
            `float32` is true, the weights of the model are in float32 for the call, and autocast must be off.
        dtype: What the model computes in, autocast included.
        can_use_float32: Whether the weights can be converted on this process; layers that round their inputs to 8 bits
            rule it out as well. Without it, a comparison that rounding leaves undecided is passed.
        reference: The layout whose rewards are right.
        candidate: The layout in question.

    Raises:
        torch.OutOfMemoryError: A layout does not fit into memory. (Where only the weights in float32 do not fit, the
            candidate stays unproven, and that is the reason returned.)
        Exception: What `score` raises on the reference layout, and what Plaudit's own code raises on the candidate of
            a model of transformers. All else that is raised on the candidate becomes a reason.
    """
    base = base_model(model)
    can_use_float32 = can_use_float32 and not rounds_inputs(base)

    def compare(float32: bool) -> str | None:
        used = torch.float32 if float32 else dtype
        once = partial(_compare_once, base, lambda layout: score(layout, float32), used, reference, candidate)
        reason, is_difference = once()
        if not is_difference:
            return reason
        again, _ = once()
        if again is None:
            logger.info("layouts compared again agree; in the first measurement, %s", reason)
        return again

    if not (can_use_float32 and _routes_experts(base)):
        try:
            return compare(float32=False)
        except _RoundingHidesDifference:
            if not can_use_float32:
                return None
    try:
        with in_float32(base):
            return compare(float32=True)
    except torch.OutOfMemoryError:
        return "only float32 could tell whether both score the same, and that does not fit into memory"


class _RoundingHidesDifference(Exception):  # noqa: N818  # a result, and no error
    """Raised where rounding could hide a difference, so that the comparison decides nothing."""


def _compare_once(
    model: "PreTrainedModel", score: Callable[[str], torch.Tensor], dtype: torch.dtype, reference: str, candidate: str
) -> tuple[str | None, bool]:
    """Return the reason against the candidate layout, if any, and whether it is a difference between rewards."""
    expected = score(reference).double()
    try:
        rewards = score(candidate).double()
    except ModelError as error:
        return str(error), False
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if not (_has_own_code(model) or _is_raised_by_transformers(error)):
            raise
        batch = "a forest" if candidate == "forest" else "a padded batch"
        return f"the model fails on {batch} ({type(error).__name__}: {error})", False
    difference, size = (rewards - expected).abs().max().item(), expected.square().mean().sqrt().item()
    share = rounding_tolerance(dtype)
    if difference <= share * size:
        # The rewards of a trained model may lie close together and far from zero: then guesses would agree as well.
        if dtype != torch.float32 and share * size > expected.std(correction=0).item() / 2 > 0:
            raise _RoundingHidesDifference
        return None, False
    return (
        f"on {len(expected)} sequences the rewards of the two layouts differ by up to {difference:.3g}, more than "
        f"{str(dtype).removeprefix('torch.')} explains ({share:.1g} of their size, {size:.3g})"
    ), True


def _has_own_code(model: "PreTrainedModel") -> bool:
    """Return whether the class of a model or of its backbone lies outside transformers, as with `trust_remote_code`."""
    for part in (model, model.base_model):
        classes = (each for each in type(part).__mro__ if not each.__module__.startswith("torch."))  # FSDP2 adds one
        if not next(classes).__module__.startswith("transformers."):
            return True
    return False


def _is_raised_by_transformers(error: Exception) -> bool:
    """Return whether an error arose in transformers' code, or below it, rather than in Plaudit's."""
    found, trace = False, error.__traceback__
    while trace is not None:
        package = str(trace.tb_frame.f_globals.get("__name__")).split(".")[0]
        if package in ("plaudit", "transformers"):
            found = package == "transformers"
        trace = trace.tb_next
    return found


def _routes_experts(model: "PreTrainedModel") -> bool:
    """Return whether tokens are routed to experts: rounding may flip a choice, which moves a reward by much more."""
    config: Any = model.config.get_text_config()
    return any((getattr(config, name, None) or 0) > 1 for name in _EXPERT_COUNTS)


def settle_layout(
    model: "PreTrainedModel | PeftModel",
    sequences: Sequence[NDArray[np.int64]],
    run: Callable[[list[NDArray[np.int64]], str], torch.Tensor],
    layout: str,
) -> tuple[str, bool]:
    """Choose the layout to score in by comparing layouts on the first sequences.

    A forest is compared with a padded batch. Where a model keeps the forward of its class, which may read padding, a
    padded batch is compared with each sequence alone.

    Args:
        model: The model, in evaluation mode.
        sequences: One or more arrays of token ids.
        run: `run(sequences, layout)` returns the rewards [N] of N sequences in one batch.
        layout: The layout to begin with, "forest" or "padded".

    Returns:
        "forest", "padded" or "alone", and whether the choice is final: where padding was to be tested and all sequences
        were of one length, it is not.

    Raises:
        torch.OutOfMemoryError: The first sequences do not fit into memory.
        ModelError: The model gives no reward for the sequences.
    """
    base = base_model(model)
    probe = list(sequences[: probe_size([len(ids) for ids in sequences[:_PROBED_SEQUENCES]])])

    def differ(probe: list[NDArray[np.int64]], reference: str, candidate: str) -> str | None:
        return layouts_differ(
            base, lambda name, _: run(probe, name), dtype=compute_dtype(base), reference=reference, candidate=candidate
        )

    with_branch = probe + _branching_pair(probe[0], max_positions(base))
    if layout == "forest" and (reason := differ(with_branch, "padded", "forest")):
        layout = "padded"
        logger.warning("scoring padded batches, since %s", reason)
    if layout == "forest" or has_reward_forward(base):  # which reads no padding, whatever the pad token is
        return layout, True
    probe.append(np.append(probe[0][: len(probe[0]) // 2], probe[0][-1]))
    if reason := differ(probe, "alone", "padded"):
        layout = "alone"
        logger.warning("scoring each sequence alone, which is slow, since padding changes rewards: %s", reason)
    return layout, len(set(map(len, probe))) > 1


def _branching_pair(ids: NDArray[np.int64], max_positions: int | None) -> list[NDArray[np.int64]]:
    """Make two sequences that share a prefix, if there is room for one: a wrong mask shows only where tokens branch."""
    size = min(2 * SHARED_TOKENS, max_positions or 2 * SHARED_TOKENS)
    if size <= SHARED_TOKENS + 16:
        return []
    trunk = np.resize(ids, size)
    return [trunk, np.concatenate([trunk[: SHARED_TOKENS + 8], trunk[:8][::-1]])]
