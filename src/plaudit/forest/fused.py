"""Attention over a forest by the flash attention kernel of PyTorch for CPUs, which writes no scores to memory.

The kernel knows keys that all queries see, causal masks and additive masks. A forest is made of such parts
(`plaudit.forest.partition.partition_kernel_calls`). Where the keys of a query are spread over several parts, the
outputs are merged by the logarithms of their sums of exponentials (arXiv:2205.14135, section 3.1). With the merged
logarithms, the backward of the kernel gives the exact gradient of each part.

The two operators are those that `torch.nn.functional.scaled_dot_product_attention` calls on a CPU. They are taken
directly, since the public function does not return the logarithms.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from plaudit.forest.blocks import ScoreRules
from plaudit.forest.partition import KernelCall

__all__ = ["attend_fused", "can_attend_fused", "is_faster_than_blocks"]

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def can_attend_fused(query: torch.Tensor, value: torch.Tensor, rules: ScoreRules, sinks: torch.Tensor | None) -> bool:
    """Return whether the kernel computes this attention.

    Args:
        query: Shape [..., D].
        value: Shape [..., D].
        rules: How scores become weights.
        sinks: A score for each head that takes part in the softmax and has no value.
    """
    is_plain = rules.plain and rules.window is None and sinks is None
    return is_plain and query.device.type == "cpu" and query.shape[-1] == value.shape[-1]


def is_faster_than_blocks(query: torch.Tensor, value: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether the kernel is faster than attention block by block where both compute the same.

    In bf16 the backward of the kernel takes more than twice as long (measured on a processor with AMX): it converts
    all products to float32.
    """
    return dtype == torch.float32 or not (torch.is_grad_enabled() and (query.requires_grad or value.requires_grad))


def attend_fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    calls: list[KernelCall],
    scaling: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Compute the attention of every query to its ancestors and itself.

    Args:
        query: Shape [H, T, D].
        key: Shape [K, T, D]; each head serves H / K heads of queries.
        value: Shape [K, T, D].
        calls: The forest, from `partition_kernel_calls`.
        scaling: Factor of the dot products.
        dtype: Precision of the products.

    Returns:
        Shape [T, H, D], in `dtype`.
    """
    tensors = (each.to(dtype) for each in (query, key, value))
    # The kernel reads the elements of a token from consecutive places.
    return _FusedAttention.apply(
        *(each if each.stride(-1) == 1 else each.contiguous() for each in tensors), calls, scaling
    )


class _FusedAttention(torch.autograd.Function):
    """The attention of all parts in turn.

    The kernel is given K batches of G = H / K heads, so that the keys of a batch serve its heads without a copy.
    """

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, calls: Any, scaling: Any) -> torch.Tensor:
        heads, tokens, size = query.shape
        grouped, key, value = _by_group(query, key, value)
        groups = len(grouped)
        # Token by token in memory, as the layers around attention compute; in float32 until all parts are merged.
        out = torch.empty(tokens, groups, heads // groups, size, dtype=torch.promote_types(query.dtype, torch.float32))
        merged = out.permute(1, 2, 0, 3)  # [K, G, T, D]
        logarithms = torch.empty(groups, heads // groups, tokens, dtype=out.dtype)
        for call in calls:
            parts = grouped[:, :, call.queries], key[:, :, call.keys], value[:, :, call.keys]
            part, logarithm = _forward(*parts, 0.0, call.is_causal, attn_mask=call.bias(query.dtype), scale=scaling)
            _merge(merged[:, :, call.queries], logarithms[:, :, call.queries], part, logarithm, first=call.is_first)
        out = out.view(tokens, heads, size).to(query.dtype)
        ctx.calls, ctx.scaling = calls, scaling
        ctx.save_for_backward(grouped, key, value, out, logarithms)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, logarithms = ctx.saved_tensors
        groups, heads, tokens, size = query.shape
        out, grad = (each.view(tokens, groups, heads, size).permute(1, 2, 0, 3) for each in (out, grad.contiguous()))
        grad_query = torch.empty(tokens, groups, heads, size, dtype=query.dtype).permute(1, 2, 0, 3)
        grad_key, grad_value = (torch.zeros(groups, tokens, size, dtype=query.dtype) for _ in range(2))
        for call in ctx.calls:
            parts = (
                *(each[:, :, call.queries] for each in (grad, query)),
                *(each[:, :, call.keys] for each in (key, value)),
                *(each[:, :, call.queries] for each in (out, logarithms)),
            )
            of_query, of_key, of_value = _backward(
                *parts, 0.0, call.is_causal, attn_mask=call.bias(query.dtype), scale=ctx.scaling
            )
            place = grad_query[:, :, call.queries]
            place.copy_(of_query) if call.is_first else place.add_(of_query)
            grad_key[:, call.keys] += of_key.sum(1)
            grad_value[:, call.keys] += of_value.sum(1)
        return grad_query.reshape(groups * heads, tokens, size), grad_key, grad_value, None, None


def _by_group(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """View queries [H, T, D], keys and values [K, T, D] as [K, G, T, D] each, without a copy."""
    groups = len(key)
    grouped = query.unflatten(0, (groups, len(query) // groups))
    return grouped, *(each[:, None].expand(-1, grouped.shape[1], -1, -1) for each in (key, value))


def _merge(
    merged: torch.Tensor,  # [K, G, L, D]
    logarithms: torch.Tensor,  # [K, G, L]
    part: torch.Tensor,
    logarithm: torch.Tensor,
    *,
    first: bool,
) -> None:
    """Merge the output of a part, and the logarithms of its sums of exponentials, into those of earlier parts."""
    if first:
        merged.copy_(part)
        logarithms.copy_(logarithm)
        return
    share = torch.sigmoid(logarithm - logarithms)
    merged.lerp_(part.to(merged.dtype), share[..., None])
    torch.logaddexp(logarithms, logarithm, out=logarithms)
