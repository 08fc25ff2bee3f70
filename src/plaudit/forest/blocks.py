"""Attention over a forest, chain by chain: the exact scores that the mask keeps, and little else.

A chain's queries attend to their path: the chains above it, and themselves. On a path, keys stand in the order of their
positions from 0 on, so a piece of a chain needs no mask but the causal one on its own last columns, whatever the rest
of the batch looks like. Nothing of the size T x T is ever made: long chains are cut into pieces, and the weights of
long paths are computed again in the backward pass instead of kept, so memory grows with T alone.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from plaudit.forest.layout import Chain

__all__ = ["Piece", "ScoreRules", "attend_pieces", "cut_pieces"]

# Scores of one piece, over all heads: 2 MB in float32, about what a core's caches hold.
_SCORES = 1 << 19
_LEAST_QUERIES = 32  # fewer rows make matrix products slow
# Weights over paths up to so many keys are kept for the backward pass: a bound for each token, so memory stays linear.
_KEPT_KEYS = 256


@dataclass(frozen=True)
class Piece:
    """Some consecutive queries of one chain, and the keys of their path.

    Attributes:
        start: Index of the first query.
        stop: One past the last.
        depth: Position of the first query.
        path: Index ranges of the keys, in the order of their positions; the last ends with the queries themselves.
        first: Position of the first key: 0, or later where a window leaves out the beginning.
    """

    start: int
    stop: int
    depth: int
    path: tuple[tuple[int, int], ...]
    first: int


@dataclass(frozen=True)
class ScoreRules:
    """How a layer turns scores into weights.

    Attributes:
        scaling: Factor of the dot products.
        window: A query sees keys less than so many positions back; `None` for all.
        softcap: Scores become `softcap * tanh(scores / softcap)` (Gemma 2, arXiv:2408.00118, section 2).
        dropout: Rate at which weights are dropped.
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None
    dropout: float = 0.0

    @property
    def plain(self) -> bool:
        """Nothing but a scaled softmax under a mask."""
        return self.softcap is None and not self.dropout


def cut_pieces(chains: list[Chain], heads: int, window: int | None = None) -> list[Piece]:
    """Cut a forest's chains into pieces of bounded size.

    Args:
        chains: The chains, depth first.
        heads: Attention heads, which share the room for scores.
        window: As in `ScoreRules`.
    """
    pieces: list[Piece] = []
    paths: dict[int, tuple[tuple[int, int], ...]] = {-1: ()}
    for chain in chains:
        above = paths[chain.parent]
        paths[chain.start] = (*above, (chain.start, chain.stop))
        start = chain.start
        while start < chain.stop:
            depth = chain.depth + start - chain.start
            keys = depth if window is None else min(depth, window)
            # The number of queries for which queries * (keys + queries) scores fit.
            fitting = int((math.sqrt(keys * keys + 4 * _SCORES / heads) - keys) / 2)
            stop = min(chain.stop, start + max(_LEAST_QUERIES, fitting))
            first = 0 if window is None else max(0, depth - window + 1)
            path = tuple(_from_position((*above, (chain.start, stop)), first))
            pieces.append(Piece(start, stop, depth, path, first))
            start = stop
    return pieces


def _from_position(path: tuple[tuple[int, int], ...], first: int) -> Iterator[tuple[int, int]]:
    for start, stop in path:
        if stop - start > first:
            yield start + first, stop
        first = max(0, first - (stop - start))


def attend_pieces(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pieces: list[Piece],
    rules: ScoreRules,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of every query to its path.

    Args:
        query: Shape [H, T, D].
        key: Shape [K, T, D], each head serving H / K query heads.
        value: Shape [K, T, D].
        pieces: From `cut_pieces`.
        rules: How scores become weights.
        sinks: One score for each head that takes part in the softmax and attends to nothing, shape [H].

    Returns:
        Shape [T, H, D].
    """
    return _Attention.apply(query, key, value, sinks, pieces, rules)


class _Attention(torch.autograd.Function):
    """All pieces in turn. Of a long path nothing is kept for the backward pass, which computes its weights again."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, sinks: Any, pieces: Any, rules: Any) -> torch.Tensor:
        ctx.pieces, ctx.rules = pieces, rules
        ctx.seed = int(torch.randint(1 << 62, ())) if rules.dropout else 0
        out = value.new_empty(query.shape[1], len(query), value.shape[-1])
        kept: list[torch.Tensor | None] = []
        keeps = any(ctx.needs_input_grad) and rules.plain and sinks is None
        for number, piece in enumerate(pieces):
            queries, keys, values = _cut(query, key, value, piece)
            if rules.plain and sinks is None:
                weights = _plain_weights(queries, keys, piece, rules)
                part = torch.bmm(weights, values)
                kept.append(weights if keeps and weights.shape[-1] <= _KEPT_KEYS else None)
            else:
                part = _attend(queries, keys, values, sinks, piece, rules, ctx.seed + number)
            out[piece.start : piece.stop] = _of_queries(part, piece, len(query)).transpose(0, 1)
        ctx.save_for_backward(query, key, value, sinks, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, sinks, *kept = ctx.saved_tensors
        wide = torch.promote_types(key.dtype, torch.float32)
        grad_query = torch.empty_like(query)
        # A key is on the paths of all chains below it; their parts are added up in at least float32.
        grad_key, grad_value = (torch.zeros_like(tensor, dtype=wide) for tensor in (key, value))
        grad_sinks = None if sinks is None else torch.zeros_like(sinks, dtype=wide)
        grad = grad.transpose(0, 1)  # [H, T, D]
        for number, piece in enumerate(ctx.pieces):
            parts = _cut(query, key, value, piece)
            above = _queries(grad, piece, len(key))
            if ctx.rules.plain and sinks is None:
                grads = _plain_backward(*parts, above, kept[number], piece, ctx.rules)
            else:
                grads = _backward(*parts, above, sinks, piece, ctx.rules, ctx.seed + number)
            grad_query[:, piece.start : piece.stop] = _of_queries(grads[0], piece, len(query))
            _add_to_path(grad_key, grads[1], piece)
            _add_to_path(grad_value, grads[2], piece)
            if grad_sinks is not None:
                grad_sinks += grads[3]
        sinks_out = None if sinks is None else grad_sinks.to(sinks.dtype)
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), sinks_out, None, None


# Without soft-capping, sinks and dropout: few passes over the scores, and derivatives by hand.


def _plain_weights(query: torch.Tensor, key: torch.Tensor, piece: Piece, rules: ScoreRules) -> torch.Tensor:
    """Attention weights [K, G * L, S] in the precision of the values; the softmax itself computes in float32."""
    bias = _bias(piece, rules.window, query.shape[1], key.shape[1], query.dtype, query.device)
    return torch.softmax(torch.baddbmm(bias, query, key.transpose(1, 2), alpha=rules.scaling), -1)


def _plain_backward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grad: torch.Tensor,
    weights: torch.Tensor | None,
    piece: Piece,
    rules: ScoreRules,
) -> tuple[torch.Tensor, ...]:
    if weights is None:
        weights = _plain_weights(query, key, piece, rules)
    grad_value = torch.bmm(weights.transpose(1, 2), grad)
    grad_weights = torch.bmm(grad, value.transpose(1, 2))
    grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
    grad_query = torch.bmm(grad_scores, key).mul_(rules.scaling)
    grad_key = torch.bmm(grad_scores.transpose(1, 2), query).mul_(rules.scaling)
    return grad_query, grad_key, grad_value


# With them: plain formulas, and autograd on one piece at a time.


def _attend(
    query: torch.Tensor,  # [K, G * L, D]
    key: torch.Tensor,  # [K, S, D]
    value: torch.Tensor,
    sinks: torch.Tensor | None,  # [H]
    piece: Piece,
    rules: ScoreRules,
    seed: int,
) -> torch.Tensor:  # [K, G * L, D]
    groups, rows, keys = len(key), query.shape[1], key.shape[1]
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = torch.bmm(query, key.transpose(1, 2)).to(wide) * rules.scaling
    if rules.softcap is not None:
        scores = rules.softcap * torch.tanh(scores / rules.softcap)
    scores = scores + _bias(piece, rules.window, rows, keys, wide, query.device)
    if sinks is not None:
        length = _round_up(piece.stop - piece.start)
        sink = sinks.to(wide).view(groups, -1, 1).expand(-1, -1, length).reshape(groups, rows, 1)
        scores = torch.cat([scores, sink], -1)
    weights = torch.softmax(scores, -1)[..., :keys]
    if rules.dropout:
        generator = torch.Generator(weights.device).manual_seed(seed)
        stays = torch.rand(weights.shape, generator=generator, device=weights.device) >= rules.dropout
        weights = weights * stays / (1 - rules.dropout)
    return torch.bmm(weights.to(value.dtype), value)


def _backward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grad: torch.Tensor,
    sinks: torch.Tensor | None,
    piece: Piece,
    rules: ScoreRules,
    seed: int,
) -> tuple[torch.Tensor, ...]:
    inputs = [tensor.detach().requires_grad_() for tensor in (query, key, value, sinks) if tensor is not None]
    with torch.enable_grad():
        part = _attend(*inputs[:3], None if sinks is None else inputs[3], piece, rules, seed)
    return torch.autograd.grad(part, inputs, grad)


# Between the forest's tensors and those of a piece, which are filled up to few shapes.


def _cut(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, piece: Piece
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The piece's queries [K, G * L, D], the heads that share a key side by side, and its keys and values [K, S, D]."""
    return _queries(query, piece, len(key)), _path(key, piece), _path(value, piece)


def _queries(tensor: torch.Tensor, piece: Piece, groups: int) -> torch.Tensor:
    """[H, T, D] -> [K, G * L, D], filled up with zeros."""
    length = piece.stop - piece.start
    part = tensor.new_empty(len(tensor), _round_up(length), tensor.shape[-1])
    part[:, :length] = tensor[:, piece.start : piece.stop]
    part[:, length:] = 0
    return part.view(groups, -1, tensor.shape[-1])


def _of_queries(part: torch.Tensor, piece: Piece, heads: int) -> torch.Tensor:
    """[K, G * L, D] -> [H, stop - start, D]."""
    return part.view(heads, -1, part.shape[-1])[:, : piece.stop - piece.start]


def _path(tensor: torch.Tensor, piece: Piece) -> torch.Tensor:
    """[K, T, D] -> [K, S, D], filled up with zeros."""
    length = sum(stop - start for start, stop in piece.path)
    part = tensor.new_empty(len(tensor), _round_up(length), tensor.shape[-1])
    done = 0
    for start, stop in piece.path:
        part[:, done : done + stop - start] = tensor[:, start:stop]
        done += stop - start
    part[:, length:] = 0
    return part


def _add_to_path(total: torch.Tensor, part: torch.Tensor, piece: Piece) -> None:
    """Add [K, S, D] to where it was cut from."""
    done = 0
    for start, stop in piece.path:
        total[:, start:stop] += part[:, done : done + stop - start]
        done += stop - start


def _round_up(length: int) -> int:
    """A product of a shape not seen before costs ten times one that was (a kernel is generated): few shapes, then."""
    step = 16 if length <= 128 else 64
    return -(-length // step) * step


def _bias(
    piece: Piece, window: int | None, rows: int, keys: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """What is added to the scores [G * L, S]: 0 where a query sees a key, else minus infinity.

    Keys that only fill up come after all queries that are real.
    """
    return _bias_of(piece.depth - piece.first, _round_up(piece.stop - piece.start), window, rows, keys, dtype, device)


@lru_cache(maxsize=64)  # the layers of one batch ask for the same
def _bias_of(
    before: int, length: int, window: int | None, rows: int, keys: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    positions = torch.arange(keys, device=device)
    # Rows that only fill up may lie behind the last key; where they are kept from it, all they see may be nothing.
    queries = torch.arange(before, before + length, device=device).clamp(max=keys - 1)[:, None]
    hidden = positions > queries
    if window is not None:
        hidden |= queries - positions >= window
    return torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, -math.inf).repeat(rows // length, 1)
