"""Attention over a forest by FlexAttention, for CUDA: one compiled kernel with the forest's mask.

Kernels are compiled for shapes. Forests differ in theirs, so they are filled up to whole blocks, which leaves a static
kernel for the first forest and one for all others. transformers' own call would, past `recompile_limit`, go on without
a kernel, slowly and with all T x T scores in memory; here that is an error.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad
from transformers.integrations.flex_attention import get_flex_attention_lse_kwargs

from plaudit.forest.blocks import ScoreRules

__all__ = ["MIN_HEAD_DIM", "attend_flex", "block_mask", "fill_blocks"]

MIN_HEAD_DIM = 16  # FlexAttention has no kernel for narrower heads
BLOCK_SIZE = 128  # FlexAttention's own choice
_MAX_KERNELS = 64  # of all models of a process: each with and without window, with and without gradient, static and not


def fill_blocks(
    input_ids: torch.Tensor, position_ids: torch.Tensor, subtree_end: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fill a forest (shapes [1, T]) up to whole blocks, and at least two, with roots that nothing else sees."""
    size = input_ids.shape[1]
    rest = max(-size % BLOCK_SIZE, 2 * BLOCK_SIZE - size)
    ends = torch.arange(size + 1, size + rest + 1, device=subtree_end.device)
    return pad(input_ids, (0, rest)), pad(position_ids, (0, rest)), torch.cat([subtree_end, ends[None]], 1)


def block_mask(
    position_ids: torch.Tensor, subtree_end: torch.Tensor, window: int | None, mask_mod: Callable[..., torch.Tensor]
) -> BlockMask:
    """A forest's mask as FlexAttention takes it.

    Args:
        position_ids: Depth of each token, shape [T].
        subtree_end: One past the last token of its subtree, shape [T].
        window: How far back a query sees; `None`: all the way.
        mask_mod: The whole mask: which key a query sees, as FlexAttention asks for it.
    """
    # Which blocks there are is told from the ends of each; `create_block_mask` would make the whole T x T mask.
    some, full = _visible_blocks(position_ids, subtree_end, window)
    (partial_counts, partial), (full_counts, full) = (_block_indices(blocks) for blocks in (some & ~full, full))
    size = len(position_ids)
    return BlockMask.from_kv_blocks(
        partial_counts, partial, full_counts, full, BLOCK_SIZE, mask_mod=mask_mod, seq_lengths=(size, size)
    )


def _visible_blocks(
    position_ids: torch.Tensor, subtree_end: torch.Tensor, window: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether any query of a block may see any key of another, and whether all see all; each [blocks, blocks]."""
    size = len(position_ids)
    rest = -size % BLOCK_SIZE  # the last block counts as filled up with its last token
    end, position = (
        torch.cat([each, each[-1:].expand(rest)]).view(-1, BLOCK_SIZE) for each in (subtree_end, position_ids)
    )
    first = torch.arange(0, size, BLOCK_SIZE, device=end.device)  # of each block
    query, key = first[:, None], first[None, :]
    some = (key <= query) & (query < end.amax(1))
    full = (key + BLOCK_SIZE <= query) & (query + BLOCK_SIZE <= end.amin(1))
    if window is not None:
        some = some & (position.amin(1)[:, None] - position.amax(1) < window)
        full = full & (position.amax(1)[:, None] - position.amin(1) < window)
    return some, full


def _block_indices(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many blocks each row has [1, 1, Q], and a row's numbers with those first [1, 1, Q, K]."""
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
    """Attention of every query to its path.

    Args:
        query: Shape [1, H, T, D].
        key: Shape [1, K, T, D], each head serving H / K query heads.
        value: Shape [1, K, T, D].
        mask: From `block_mask`.
        rules: How scores become weights; the mask knows the window.
        sinks: One score for each head that takes part in the softmax and attends to nothing, shape [H].

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
        scores = getattr(more, "lse", more)  # older torch gives them as they are, [1, H, T] in float32
        share = torch.sigmoid(scores - sinks.float()[:, None])  # of the weights that the sink leaves
        out = (out * share[..., None]).to(out.dtype)
    return out.transpose(1, 2).contiguous()


def _soft_cap(softcap: float) -> Callable[..., torch.Tensor]:
    return lambda score, *_: softcap * torch.tanh(score / softcap)


@cache
def _compiled() -> Callable[..., Any]:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MAX_KERNELS)
    return torch.compile(flex_attention, fullgraph=True)
