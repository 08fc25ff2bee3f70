"""Attention over a forest, chain by chain: the exact scores that the mask keeps, and little else.

A chain's queries attend to their path: the chains above it, and themselves. On a path, keys stand in the order of their
positions from 0 on, so a piece of a chain needs no mask but the causal one on its own last columns, whatever the rest
of the batch looks like. Nothing of the size T x T is ever made: long chains are cut into pieces, and what a piece
computes is computed again in the backward pass instead of kept, so memory grows with T alone.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from plaudit.forest.layout import Chain

__all__ = ["Piece", "ScoreRules", "attend_pieces", "cut_pieces"]

# Scores of one piece, over all heads: 2 MB in float32, about what a core's caches hold.
_SCORES = 1 << 19
_LEAST_QUERIES = 32  # fewer rows make matrix products slow


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
    """Forward without a graph; backward makes each piece's graph again, uses it and lets it go."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, sinks: Any, pieces: Any, rules: Any) -> torch.Tensor:
        ctx.save_for_backward(query, key, value, sinks)
        ctx.pieces, ctx.rules = pieces, rules
        ctx.seed = int(torch.randint(1 << 62, ())) if rules.dropout else 0
        heads, tokens, _ = query.shape
        out = value.new_empty(tokens, heads, value.shape[-1])
        for number, piece in enumerate(pieces):
            part = _attend(*_cut(query, key, value, piece), sinks, piece, rules, ctx.seed + number)
            length = piece.stop - piece.start
            out[piece.start : piece.stop] = part.view(heads, -1, part.shape[-1])[:, :length].transpose(0, 1)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, sinks = ctx.saved_tensors
        wide = torch.promote_types(key.dtype, torch.float32)
        grad_query = torch.empty_like(query)
        # A key is on the paths of all chains below it; their parts are added up in at least float32.
        grad_key, grad_value = (torch.zeros_like(tensor, dtype=wide) for tensor in (key, value))
        grad_sinks = None if sinks is None else torch.zeros_like(sinks, dtype=wide)
        grad = grad.transpose(0, 1)  # [H, T, D]
        for number, piece in enumerate(ctx.pieces):
            inputs = [part.detach().requires_grad_() for part in _cut(query, key, value, piece)]
            if sinks is not None:
                inputs.append(sinks.detach().requires_grad_())
            with torch.enable_grad():
                part = _attend(*inputs[:3], None if sinks is None else inputs[3], piece, ctx.rules, ctx.seed + number)
            parts = torch.autograd.grad(part, inputs, _queries(grad, piece, len(key)))
            length = piece.stop - piece.start
            grad_query[:, piece.start : piece.stop] = parts[0].view(len(query), -1, query.shape[-1])[:, :length]
            for total, addend in ((grad_key, parts[1]), (grad_value, parts[2])):
                done = 0
                for start, stop in piece.path:
                    total[:, start:stop] += addend[:, done : done + stop - start]
                    done += stop - start
            if grad_sinks is not None:
                grad_sinks += parts[3]
        sinks_out = None if sinks is None else grad_sinks.to(sinks.dtype)
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), sinks_out, None, None


def _cut(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, piece: Piece
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The piece's queries [K, G * L, D], the heads that share a key side by side, and its keys and values [K, S, D]."""
    return _queries(query, piece, len(key)), _path(key, piece), _path(value, piece)


def _queries(tensor: torch.Tensor, piece: Piece, groups: int) -> torch.Tensor:
    """[H, T, D] -> [K, G * L, D], filled up with zeros."""
    heads, _, size = tensor.shape
    part = tensor.new_zeros(heads, _round_up(piece.stop - piece.start), size)
    part[:, : piece.stop - piece.start] = tensor[:, piece.start : piece.stop]
    return part.view(groups, -1, size)


def _path(tensor: torch.Tensor, piece: Piece) -> torch.Tensor:
    """[K, T, D] -> [K, S, D], filled up with zeros."""
    length = sum(stop - start for start, stop in piece.path)
    part = tensor.new_zeros(len(tensor), _round_up(length), tensor.shape[-1])
    done = 0
    for start, stop in piece.path:
        part[:, done : done + stop - start] = tensor[:, start:stop]
        done += stop - start
    return part


def _round_up(length: int) -> int:
    """A product of a shape not seen before costs ten times one that was (a kernel is generated): few shapes, then."""
    step = 16 if length <= 128 else 64
    return -(-length // step) * step


def _attend(
    query: torch.Tensor,  # [K, G * L, D]
    key: torch.Tensor,  # [K, S, D]
    value: torch.Tensor,
    sinks: torch.Tensor | None,  # [H]
    piece: Piece,
    rules: ScoreRules,
    seed: int,
) -> torch.Tensor:  # [K, G * L, D]
    groups, length, keys = len(key), _round_up(piece.stop - piece.start), key.shape[1]
    wide = torch.promote_types(query.dtype, torch.float32)
    bias = _bias(piece.depth - piece.first, length, keys, rules.window, query)
    bias = bias.repeat(query.shape[1] // length, 1)  # [G * L, S]
    if rules.softcap is None:
        scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=rules.scaling)
    else:
        scores = torch.bmm(query, key.transpose(1, 2)).to(wide) * rules.scaling
        scores = rules.softcap * torch.tanh(scores / rules.softcap) + bias
    if sinks is None:
        weights = torch.softmax(scores, -1, dtype=wide)
    else:
        sink = sinks.to(wide).view(groups, -1, 1).expand(-1, -1, length).reshape(groups, -1, 1)
        weights = torch.softmax(torch.cat([scores.to(wide), sink], -1), -1)[..., :-1]
    if rules.dropout:
        generator = torch.Generator(weights.device).manual_seed(seed)
        kept = torch.rand(weights.shape, generator=generator, device=weights.device) >= rules.dropout
        weights = weights * kept / (1 - rules.dropout)
    return torch.bmm(weights.to(value.dtype), value)


def _bias(before: int, length: int, keys: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """What is added to the scores [L, S]: 0 where a query sees a key, else minus infinity.

    `before` keys lie in front of the first query. Keys that only fill up come after all queries that are real.
    """
    positions = torch.arange(keys, device=like.device)
    queries = torch.arange(before, before + length, device=like.device)[:, None]
    hidden = positions > queries
    if window is not None:
        hidden |= queries - positions >= window
    return torch.zeros_like(hidden, dtype=like.dtype).masked_fill_(hidden, -math.inf)
