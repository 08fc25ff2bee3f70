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

_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

# Where a query sees fewer keys than a vector register of the processor has numbers, and all of its scores are NaN, the
# kernel gives 0, which would hide a broken model.
_FEW_KEYS = 64


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
    query, key, value = (each if each.stride(-1) == 1 else each.contiguous() for each in tensors)
    if torch.is_grad_enabled():
        return _FusedAttention.apply(query, key, value, calls, scaling)
    return _forward(query, key, value, calls, scaling)[0]  # an autograd function takes the host longer


class _FusedAttention(torch.autograd.Function):
    """The attention of all parts in turn."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, calls: Any, scaling: Any) -> torch.Tensor:
        out, *saved = _forward(query, key, value, calls, scaling)
        ctx.calls, ctx.scaling = calls, scaling
        ctx.save_for_backward(*saved, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # of the output, [T, H, D]
        query, key, value, logarithms, out = ctx.saved_tensors
        groups, heads, tokens, size = query.shape
        out, grad = (each.view(tokens, groups, heads, size).permute(1, 2, 0, 3) for each in (out, grad.contiguous()))
        parts = grad, query, key, value, out, logarithms
        if len(ctx.calls) == 1:
            call = ctx.calls[0]
            grads = _kernel_backward(*parts, 0.0, call.is_causal, attn_mask=call.bias(query.dtype), scale=ctx.scaling)
        else:
            grads = _summed_backward(*parts, ctx.calls, ctx.scaling)
        grad_query, *of_heads = grads
        return grad_query.reshape(groups * heads, tokens, size), *(each.sum(1) for each in of_heads), None, None


def _forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, calls: list[KernelCall], scaling: float
) -> tuple[torch.Tensor, ...]:
    """Return the output [T, H, D], and what the backward needs.

    These are queries, keys and values as the kernel is given them, and the logarithms of the sums of exponentials
    [K, G, T]. The kernel is given K batches of G = H / K heads, so that the keys of a batch serve its heads without a
    copy.
    """
    grouped, keys, values = _by_group(query, key, value)
    if len(calls) == 1:  # of all tokens
        bias = calls[0].bias(query.dtype)
        out, logarithms = _kernel(grouped, keys, values, 0.0, calls[0].is_causal, attn_mask=bias, scale=scaling)
    else:
        out, logarithms = _merged_forward(grouped, keys, values, calls, scaling)
    out = out.permute(2, 0, 1, 3).reshape(query.shape[1], len(query), -1).to(query.dtype)
    if any(call.keys.stop - call.keys.start < _FEW_KEYS for call in calls):
        out += (query.sum(dtype=torch.float32) + key.sum(dtype=torch.float32)) * 0.0
    return out, grouped, keys, values, logarithms


def _merged_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, calls: list[KernelCall], scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output [K, G, T, D] and the logarithms of the sums of exponentials [K, G, T] of several calls."""
    groups, heads, tokens, size = query.shape
    # In float32 until all parts are merged; token by token in memory, as the layers around attention compute.
    dtype = torch.promote_types(query.dtype, torch.float32)
    out = torch.empty(tokens, groups, heads, size, dtype=dtype).permute(1, 2, 0, 3)
    logarithms = torch.empty(groups, heads, tokens, dtype=dtype)
    for call in calls:
        parts = query[:, :, call.queries], key[:, :, call.keys], value[:, :, call.keys]
        part, logarithm = _kernel(*parts, 0.0, call.is_causal, attn_mask=call.bias(query.dtype), scale=scaling)
        _merge(out[:, :, call.queries], logarithms[:, :, call.queries], part, logarithm, first=call.is_first)
    return out, logarithms


def _summed_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    logarithms: torch.Tensor,
    calls: list[KernelCall],
    scaling: float,
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of queries, keys and values [K, G, T, D] of several calls."""
    of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(query), torch.zeros_like(query)
    for call in calls:
        queries, keys = (slice(None), slice(None), call.queries), (slice(None), slice(None), call.keys)
        parts = grad[queries], query[queries], key[keys], value[keys], out[queries], logarithms[queries]
        grads = _kernel_backward(*parts, 0.0, call.is_causal, attn_mask=call.bias(query.dtype), scale=scaling)
        if call.is_first:
            of_query[queries] = grads[0]
        else:
            of_query[queries] += grads[0]
        of_key[keys] += grads[1]
        of_value[keys] += grads[2]
    return of_query, of_key, of_value


def _by_group(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """View queries [H, T, D], keys and values [K, T, D] as [K, G, T, D] each, without a copy."""
    groups = len(key)
    heads = len(query) // groups
    grouped = query.view(groups, heads, *query.shape[1:])
    return grouped, *(each[:, None].expand(-1, heads, -1, -1) for each in (key, value))


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
