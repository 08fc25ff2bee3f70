"""Attention over a forest by FlexAttention, for CUDA: one compiled kernel with the forest's mask.

Kernels are compiled for shapes. Forests of many lengths are filled up to whole blocks (`plaudit.forest.filling`), so
that one static kernel for the first forest and one dynamic kernel for all others are enough. Past `recompile_limit`,
the call that transformers makes would go on without a kernel, slowly and with all T x T scores in memory; here that is
an error.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers.integrations.flex_attention import get_flex_attention_lse_kwargs

from plaudit.forest.blocks import ScoreRules
from plaudit.forest.filling import BLOCK_SIZE

__all__ = ["MIN_HEAD_DIM", "attend_flex", "block_mask"]

MIN_HEAD_DIM = 16  # FlexAttention has no kernel for narrower heads
_MAX_KERNELS = 64  # of a process; each model has some, with and without window and gradient, static and dynamic


def block_mask(
    position_ids: torch.Tensor,
    subtree_end: torch.Tensor,
    window: int | None,
    mask_mod: Callable[..., torch.Tensor],
    block_size: int = BLOCK_SIZE,
) -> BlockMask:
    """Make the mask of a forest for FlexAttention, without the T x T mask that `create_block_mask` would make.

    Args:
        position_ids: Depth of each token, shape [T].
        subtree_end: One past the last descendant of each token, shape [T].
        window: A query sees the keys less than so many positions before it; `None` for all.
        mask_mod: Whether a query sees a key, as FlexAttention asks for it: (batch, head, query, key) to bool.
        block_size: Number of queries, and of keys, of a block.
    """
    some, full = _visible_blocks(position_ids, subtree_end, window, block_size)
    (partial_counts, partial), (full_counts, full) = (_block_indices(blocks) for blocks in (some & ~full, full))
    size = len(position_ids)
    return BlockMask.from_kv_blocks(
        partial_counts, partial, full_counts, full, block_size, mask_mod=mask_mod, seq_lengths=(size, size)
    )


def _visible_blocks(
    position_ids: torch.Tensor, subtree_end: torch.Tensor, window: int | None, block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return whether some query of a block may see some key of another, and whether all see all; each [Q, K]."""
    size = len(position_ids)
    rest = -size % block_size  # the last block is padded with copies of its last token
    end, position = (
        torch.cat([column, column[-1:].expand(rest)]).view(-1, block_size) for column in (subtree_end, position_ids)
    )
    first = torch.arange(0, size, block_size, device=end.device)  # token of each block
    query, key = first[:, None], first[None, :]
    some = (key <= query) & (query < end.amax(1))
    full = (key + block_size <= query) & (query + block_size <= end.amin(1))
    if window is not None:
        some = some & (position.amin(1)[:, None] - position.amax(1) < window)
        full = full & (position.amax(1)[:, None] - position.amin(1) < window)
    return some, full


def _block_indices(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the number of True columns of each row [1, 1, Q], and all columns with these first [1, 1, Q, K]."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[None, None], order.int()[None, None]


def attend_flex(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: BlockMask,
    rules: ScoreRules,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the attention of every query to its ancestors and itself.

    Args:
        query: Shape [1, H, T, D].
        key: Shape [1, K, T, D]; each head serves H / K heads of queries.
        value: Shape [1, K, T, D].
        mask: The mask of the forest and the window, from `block_mask`.
        rules: How scores become weights.
        sinks: A score for each head that takes part in the softmax and has no value, shape [H].

    Returns:
        Shape [1, T, H, D].

    Raises:
        ValueError: The rules ask for dropout, which FlexAttention does not have.
    """
    if rules.dropout:
        raise ValueError("FlexAttention has no dropout")
    attend: Any = flex_attention if torch.compiler.is_compiling() else _compiled()
    options: dict[str, Any] = {"block_mask": mask, "scale": rules.scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    if rules.softcap is not None:
        options["score_mod"] = _soft_cap(rules.softcap)
    if sinks is None:
        out = attend(query, key, value, **options)
    else:
        out, more = attend(query, key, value, **options, **get_flex_attention_lse_kwargs(True))
        scores = getattr(more, "lse", more)  # log-sum-exp [1, H, T] in float32; older torch returns it by itself
        share = torch.sigmoid(scores - sinks.float()[:, None])  # of the softmax that is not the sink's
        out = (out * share[..., None]).to(out.dtype)
    return out.transpose(1, 2).contiguous()


def _soft_cap(softcap: float) -> Callable[..., torch.Tensor]:
    return lambda score, *_: softcap * torch.tanh(score / softcap)


@cache
def _compiled() -> Callable[..., Any]:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MAX_KERNELS)
    return torch.compile(flex_attention, fullgraph=True)
