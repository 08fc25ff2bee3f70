"""Attention over a forest, block by block, so that no tensor has T x T elements.

Attention weights over long paths are computed again in the backward pass instead of saved: memory grows with T alone.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from plaudit.forest.partition import Block

__all__ = ["ScoreRules", "attend_blocks"]

_PADDING = 64  # rows behind the last token, since blocks are rounded up


@dataclass(frozen=True)
class ScoreRules:
    """The way in which a layer turns scores into attention weights.

    Attributes:
        scaling: Factor of the dot products.
        window: A query sees the keys less than so many positions before it; `None` for all.
        softcap: Scores become `softcap * tanh(scores / softcap)` (Gemma 2, arXiv:2408.00118, section 2).
        dropout: Rate at which weights are dropped.
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None
    dropout: float = 0.0

    @property
    def plain(self) -> bool:
        """True where weights are a softmax of scaled and masked scores, without soft-capping and dropout."""
        return self.softcap is None and not self.dropout


def attend_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    blocks: list[Block],
    rules: ScoreRules,
    sinks: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    *,
    max_saved_keys: int = 512,
) -> torch.Tensor:
    """Compute the attention of every query to its ancestors and itself.

    Args:
        query: Shape [H, T, D].
        key: Shape [K, T, D]; each head serves H / K heads of queries.
        value: Shape [K, T, D].
        blocks: The forest, from `partition_forest`.
        rules: How scores become weights.
        sinks: A score for each head that takes part in the softmax and has no value, shape [H].
        dtype: Precision of the products; that of the values if `None`.
        max_saved_keys: Most keys of a block whose weights are saved for the backward pass. A bound for each token keeps
            memory linear in T.

    Returns:
        Shape [T, H, D], in `dtype`.
    """
    return _Attention.apply(query, key, value, sinks, blocks, rules, dtype or value.dtype, max_saved_keys)


class _Attention(torch.autograd.Function):
    """The attention of all blocks in turn.

    Tensors are laid out as [K, T, G, D], so that the queries of a block, for all G heads that one head of keys serves,
    are one slice. A slice is rounded up into the tokens of the next block. Their weights are zero, so they contribute
    nothing, and what a block writes there is overwritten by the next block.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Any,
        key: Any,
        value: Any,
        sinks: Any,
        blocks: Any,
        rules: Any,
        dtype: Any,
        max_saved_keys: Any,
    ) -> torch.Tensor:
        heads, tokens, _ = query.shape
        ctx.blocks, ctx.rules, ctx.dtypes = blocks, rules, (query.dtype, key.dtype, value.dtype)
        ctx.seed = int(torch.randint(1 << 62, ())) if rules.dropout else 0
        query, key, value = _grouped(query, len(key), dtype), _padded(key, dtype), _padded(value, dtype)
        # Token by token in memory, as the layers around attention compute.
        out = value.new_empty(tokens + _PADDING, heads, value.shape[-1])
        saved: list[torch.Tensor | None] = []
        needs_backward = any(ctx.needs_input_grad)
        for number, block in enumerate(blocks):
            queries, keys, values = _queries_of(query, block), _keys_of(key, block), _keys_of(value, block)
            weights = None
            if rules.plain and sinks is None:
                weights = _plain_weights(queries, keys, block, rules)
                part = torch.bmm(weights, values)
            else:
                part = _general_forward(queries, keys, values, sinks, block, rules, ctx.seed + number)
            saved.append(weights if needs_backward and block.keys <= max_saved_keys else None)
            _write_queries(out, part, block)
        ctx.save_for_backward(query, key, value, sinks, *saved)
        return out[:tokens]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, sinks, *saved = ctx.saved_tensors
        tokens, heads, _ = grad.shape
        grad = _grouped(grad.transpose(0, 1), len(key), value.dtype)
        grad_query = torch.empty(tokens + _PADDING, heads, query.shape[-1], dtype=ctx.dtypes[0], device=query.device)
        # A key is on the paths of all blocks below it; their gradients are summed in at least float32.
        wide = torch.promote_types(key.dtype, torch.float32)
        grad_key, grad_value = (
            torch.zeros(part.shape[1], len(part), part.shape[2], dtype=wide, device=part.device).transpose(0, 1)
            for part in (key, value)
        )
        grad_sinks = None if sinks is None else torch.zeros_like(sinks, dtype=wide)
        for number, block in enumerate(ctx.blocks):
            parts = _queries_of(query, block), _keys_of(key, block), _keys_of(value, block), _queries_of(grad, block)
            if ctx.rules.plain and sinks is None:
                grads = _plain_backward(*parts, saved[number], block, ctx.rules)
            else:
                grads = _general_backward(*parts, sinks, block, ctx.rules, ctx.seed + number)
            _write_queries(grad_query, grads[0], block)
            _add_to_keys(grad_key, grads[1], block)
            _add_to_keys(grad_value, grads[2], block)
            if grad_sinks is not None:
                grad_sinks += grads[3]
        return (
            grad_query[:tokens].transpose(0, 1),
            grad_key[:, :tokens].to(ctx.dtypes[1]),
            grad_value[:, :tokens].to(ctx.dtypes[2]),
            None if grad_sinks is None else grad_sinks.to(sinks.dtype),
            None, None, None, None,
        )  # fmt: skip


# Without soft-capping, sinks and dropout: few passes over the scores, and derivatives written out.


def _plain_weights(query: torch.Tensor, key: torch.Tensor, block: Block, rules: ScoreRules) -> torch.Tensor:
    """Return the weights [K, rows * G, keys] in the precision of the queries; the softmax computes in float32."""
    scores = _product(query, key.transpose(1, 2), rules.scaling)
    _add_bias(scores, block)
    weights = torch.softmax(scores, -1)
    weights.view(len(key), block.rows, -1, block.keys)[:, block.stop - block.start :] = 0
    return weights


def _add_bias(scores: torch.Tensor, block: Block) -> None:
    bias = block.bias(scores.dtype)
    last = scores.view(len(scores), block.rows, -1, block.keys)[..., block.keys - bias.shape[1] :]
    last += bias[:, None]


def _plain_backward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grad: torch.Tensor,
    weights: torch.Tensor | None,
    block: Block,
    rules: ScoreRules,
) -> tuple[torch.Tensor, ...]:
    if weights is None:
        weights = _plain_weights(query, key, block, rules)
    grad_value = torch.bmm(weights.transpose(1, 2), grad)
    grad_weights = torch.bmm(grad, value.transpose(1, 2))
    grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
    grad_query = _product(grad_scores, key, rules.scaling)
    return grad_query, _product(grad_scores.transpose(1, 2), query, rules.scaling), grad_value


def _product(first: torch.Tensor, second: torch.Tensor, scaling: float) -> torch.Tensor:
    return torch.baddbmm(first.new_empty(()), first, second, beta=0, alpha=scaling)


# With soft-capping, sinks or dropout: the formulas as they are, and autograd on one block at a time.


def _general_forward(
    query: torch.Tensor,  # [K, rows * G, D]
    key: torch.Tensor,  # [K, keys, D]
    value: torch.Tensor,
    sinks: torch.Tensor | None,  # [H]
    block: Block,
    rules: ScoreRules,
    seed: int,
) -> torch.Tensor:  # [K, rows * G, D]
    groups, wide = len(key), torch.promote_types(query.dtype, torch.float32)
    scores = torch.bmm(query, key.transpose(1, 2)).to(wide) * rules.scaling
    if rules.softcap is not None:
        scores = rules.softcap * torch.tanh(scores / rules.softcap)
    _add_bias(scores, block)
    if sinks is not None:
        sink = sinks.to(wide).view(groups, 1, -1).expand(-1, block.rows, -1).reshape(groups, -1, 1)
        scores = torch.cat([scores, sink], -1)
    weights = torch.softmax(scores, -1)[..., : block.keys]
    if rules.dropout:
        generator = torch.Generator(weights.device).manual_seed(seed)
        stays = torch.rand(weights.shape, generator=generator, device=weights.device) >= rules.dropout
        weights = weights * stays / (1 - rules.dropout)
    return torch.bmm(weights.to(value.dtype), value)


def _general_backward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grad: torch.Tensor,
    sinks: torch.Tensor | None,
    block: Block,
    rules: ScoreRules,
    seed: int,
) -> tuple[torch.Tensor, ...]:
    query, key, value = (tensor.detach().requires_grad_() for tensor in (query, key, value))
    sinks = None if sinks is None else sinks.detach().requires_grad_()
    with torch.enable_grad():
        part = _general_forward(query, key, value, sinks, block, rules, seed)
    grad = grad.clone()
    grad.view(len(key), block.rows, -1)[:, block.stop - block.start :] = 0  # those of the next block
    return torch.autograd.grad(part, [query, key, value, *([] if sinks is None else [sinks])], grad)


# Slices of the forest's tensors that belong to a block.


def _grouped(tensor: torch.Tensor, groups: int, dtype: torch.dtype) -> torch.Tensor:
    """Copy [H, T, D] to [K, T + padding, G, D], zero behind the last token."""
    heads, tokens, size = tensor.shape
    out = torch.empty(groups, tokens + _PADDING, heads // groups, size, dtype=dtype, device=tensor.device)
    out[:, :tokens] = tensor.view(groups, -1, tokens, size).transpose(1, 2)
    out[:, tokens:] = 0
    return out


def _padded(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Copy [K, T, D] to [K, T + padding, D], zero behind the last token."""
    heads, tokens, size = tensor.shape
    out = torch.empty(heads, tokens + _PADDING, size, dtype=dtype, device=tensor.device)
    out[:, :tokens] = tensor
    out[:, tokens:] = 0
    return out


def _write_queries(out: torch.Tensor, part: torch.Tensor, block: Block) -> None:
    """Write the queries of a block [K, rows * G, D] into [T + padding, H, D]."""
    groups, _, size = part.shape
    place = out[block.start : block.start + block.rows].view(block.rows, groups, -1, size)
    place.copy_(part.view(groups, block.rows, -1, size).transpose(0, 1))


def _queries_of(tensor: torch.Tensor, block: Block) -> torch.Tensor:
    """Return the queries of a block [K, rows * G, D]."""
    part = tensor[:, block.start : block.start + block.rows]
    return part.view(len(tensor), -1, tensor.shape[-1])


def _keys_of(tensor: torch.Tensor, block: Block) -> torch.Tensor:
    """Return the keys of a block [K, keys, D]: its path, its own, and those that round them up, which it masks."""
    own = tensor[:, block.start : block.start + block.keys - block.path_length]
    if not block.path:
        return own
    return torch.cat([*(tensor[:, start:stop] for start, stop in block.path), own], 1)


def _add_to_keys(total: torch.Tensor, part: torch.Tensor, block: Block) -> None:
    """Add the keys of a block [K, keys, D] to the tokens that they come from [K, T + padding, D]."""
    done = 0
    for start, stop in (*block.path, (block.start, block.start + block.keys - block.path_length)):
        total[:, start:stop] += part[:, done : done + stop - start]
        done += stop - start
