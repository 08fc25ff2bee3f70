"""The fingerprint of a reward model: a dozen probes with their rewards, which a reload must reproduce.

The rewards are those of the model as it is saved: without autocast, and with the head rounded to the precision of the
backbone, since a loader gives both the same.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from plaudit.data.render import render
from plaudit.errors import DataError
from plaudit.models.adapters import base_model
from plaudit.models.member_heads import MemberHeads
from plaudit.models.precision import compute_dtype, rounding_tolerance
from plaudit.models.reward_head import RewardHead

__all__ = ["Fingerprint", "columns_as_saved", "probe_sequences", "rewards_as_saved", "take_fingerprint", "tolerance"]

# Questions and answers, one line each; no system message, which some templates refuse.
_PROBES: tuple[tuple[str, ...], ...] = (
    ("What is 2 + 2?", "4."),
    ("What is 2 + 2?", "It is 5, I think."),
    ("Name a colour.", "Blue"),
    ("Why is the sky blue?", "Air scatters blue light more than red light."),
    ("Why is the sky blue?", "because because because"),
    ("How do I boil an egg?", "Put it into boiling water for eight minutes.", "Thanks!", "You are welcome."),
    ("Schreib bitte „Grüße“ auf.", "Grüße 👋"),
    ("Write a function that adds.", "def add(a, b):\n    return a + b"),
    ("Can you help me?", "No."),
    ("Can you help me?", "Of course. Tell me what you need, and I will do my best."),
    ("List two fruits.", "- apple\n- pear\n"),
    ("Is this safe?", "Yes, it is safe!", "Are you sure?", "No, please ask a doctor."),
)


@dataclass(frozen=True)
class Fingerprint:
    """Probes with their rewards.

    Attributes:
        probes: N texts or conversations.
        ids: N lists of token ids, by which a changed tokenizer or template is told apart from changed weights.
        rewards: Rewards [N].
        dtype: The precision they were computed in, such as "float32".
        members: Rewards of the members of an ensemble, [N][K]; `None` for a single model.
    """

    probes: list[Any]
    ids: list[list[int]]
    rewards: list[float]
    dtype: str
    members: list[list[float]] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the entry for `reward.json`."""
        columns = zip(self.probes, self.ids, self.rewards, strict=True)
        rows: list[dict[str, Any]] = [
            {"sequence": probe, "ids": " ".join(map(str, ids)), "reward": reward} for probe, ids, reward in columns
        ]
        for row, members in zip(rows, self.members or (), strict=False):
            row["members"] = members
        return {"dtype": self.dtype, "probes": rows}

    @classmethod
    def from_json(cls, described: dict[str, Any]) -> "Fingerprint":
        """Read what `as_json` returned."""
        rows = described["probes"]
        ids = [[int(each) for each in row["ids"].split()] for row in rows]
        members = [row["members"] for row in rows if "members" in row] or None
        return cls([row["sequence"] for row in rows], ids, [row["reward"] for row in rows], described["dtype"], members)


def tolerance(rewards: list[float], *dtypes: str) -> float:
    """Return the root mean square of the differences that rounding explains between rewards in one or more dtypes."""
    size = math.sqrt(sum(reward**2 for reward in rewards) / len(rewards))
    return size * max(rounding_tolerance(getattr(torch, dtype)) for dtype in dtypes)


def take_fingerprint(
    score: Callable[[list[list[int]]], list[list[float]]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    conversational: bool,
    dtype: torch.dtype,
    longest: int | None = None,
) -> Fingerprint:
    """Score the probes of a model.

    Args:
        score: Takes N lists of token ids and returns columns [N][C], the reward and the rewards of members, if any.
        tokenizer: The model's tokenizer.
        conversational: Whether the model was trained on conversations; the probes are of the same kind.
        dtype: The precision that `score` computes in.
        longest: The most tokens the model takes; longer probes are left out, but not all.
    """
    sequences = probe_sequences(tokenizer, conversational=conversational)
    ids = render(tokenizer, sequences)
    kept = [n for n, each in enumerate(ids) if longest is None or len(each) <= longest] or [0]
    ids = [ids[n] for n in kept]
    rewards, *members = zip(*score(ids), strict=True)
    by_probe = [list(each) for each in zip(*members, strict=True)] or None
    return Fingerprint([sequences[n] for n in kept], ids, list(rewards), str(dtype).removeprefix("torch."), by_probe)


def probe_sequences(tokenizer: PreTrainedTokenizerBase, *, conversational: bool) -> list[Any]:
    """Return the probes as conversations that the chat template accepts; as texts if it refuses all of them."""
    accepted = []
    for turns in _PROBES if conversational else ():
        roles = cycle(("user", "assistant"))
        conversation = [{"role": role, "content": content} for role, content in zip(roles, turns, strict=False)]
        with suppress(DataError):
            render(tokenizer, [conversation])
            accepted.append(conversation)
    return accepted or [" ".join(turns) for turns in _PROBES]


def rewards_as_saved(model: nn.Module, sequences: list[list[int]], *, sharded: bool = False) -> list[float]:
    """Return the rewards [N] of N lists of token ids, the first of the columns that `columns_as_saved` returns."""
    return [columns[0] for columns in columns_as_saved(model, sequences, sharded=sharded)]


@torch.no_grad()
def columns_as_saved(model: nn.Module, sequences: list[list[int]], *, sharded: bool = False) -> list[list[float]]:
    """Return the columns [N][C] of N lists of token ids, scored one at a time, as the saved model will give them.

    The first column is the reward. The members of an ensemble on one backbone follow.

    Args:
        model: A model with the forward of `plaudit.models.reward_head`.
        sequences: N lists of token ids.
        sharded: Whether `model` is a wrapper around weights on several devices. All processes must then call this
            function, and the wrapper, which gathers the weights, decides the precision.
    """
    # accelerate wraps the forward in autocast, and keeps the plain one under this name.
    forward = model if sharded else vars(model).get("_original_forward", model)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with _rounded_head(model), _score_with_saved_head(model), _no_tf32():
            inputs = (torch.tensor([ids], device=device) for ids in sequences)
            return [forward(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].tolist() for ids in inputs]
    finally:
        model.train(was_training)


@contextmanager
def _score_with_saved_head(model: nn.Module) -> Iterator[None]:
    """Have the first column of an ensemble come from the model's own head, which is saved, and not from the members."""
    members = [module for module in model.modules() if isinstance(module, MemberHeads) and module.are_ahead]
    for each in members:
        each.are_ahead = False
    try:
        yield
    finally:
        for each in members:
            each.are_ahead = True


@contextmanager
def _no_tf32() -> Iterator[None]:
    """Compute float32 products in float32: with `tf32=True` a GPU rounds their factors, and a reload does not."""
    products: Any = torch.backends.cuda.matmul
    name, exact = ("fp32_precision", "ieee") if hasattr(products, "fp32_precision") else ("allow_tf32", False)
    before = getattr(products, name)
    setattr(products, name, exact)
    try:
        yield
    finally:
        setattr(products, name, before)


@contextmanager
def _rounded_head(model: nn.Module) -> Iterator[None]:
    """Round the head's float32 parameters to the backbone's precision, and restore them at the end."""
    heads = [module for module in model.modules() if isinstance(module, RewardHead)]
    # Under ZeRO-3 a parameter may be empty here and gathered by the time it would be restored.
    exact = {each: each.data.clone() for head in heads for each in head.parameters() if each.numel()}
    dtype = compute_dtype(base_model(getattr(model, "module", model)))
    try:
        for parameter, data in exact.items():
            parameter.data.copy_(data.to(dtype))
        yield
    finally:
        for parameter, data in exact.items():
            parameter.data.copy_(data)
