"""Forests filled up to a few sizes. Kernels are made for shapes, and a shape that recurs finds its kernel made."""

import torch
from torch.nn.functional import pad

__all__ = ["BLOCK_SIZE", "fill_for_kernels", "fill_forest", "filled_size"]

BLOCK_SIZE = 128  # FlexAttention's default
_SIZES_TO_AN_OCTAVE = 16  # of a CPU: a forest grows by 2 to 3% on average
_LEAST_STEP = 16


def filled_size(tokens: int, device: torch.device, dtype: torch.dtype) -> int:
    """Return the number of tokens that a forest is to be filled up to.

    On CUDA these are whole blocks, and at least two, so that all forests share FlexAttention's two kernels. On a CPU,
    oneDNN generates a kernel for the products of each new number of rows in bf16 and float16. In bf16 that took 2 to 5
    ms for each product of a layer (two cores with AMX), and oneDNN forgets kernels after 1,024: forests have one of 16
    sizes between two powers of two, and multiples of 16 up to 256.

    Args:
        tokens: The tokens of the forest.
        device: The device of the model.
        dtype: The precision of the model's products.
    """
    if device.type == "cuda":
        return max(_round_up(tokens, BLOCK_SIZE), 2 * BLOCK_SIZE)
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return tokens
    octave = 1 << (tokens.bit_length() - 1)
    return _round_up(tokens, max(octave // _SIZES_TO_AN_OCTAVE, _LEAST_STEP))


def fill_forest(
    input_ids: torch.Tensor, position_ids: torch.Tensor, subtree_end: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fill a forest (columns of shape [1, T]) up to `size` tokens with roots that no other token sees."""
    tokens = input_ids.shape[1]
    rest = size - tokens
    if not rest:
        return input_ids, position_ids, subtree_end
    ends = torch.arange(tokens + 1, size + 1, device=subtree_end.device)
    return pad(input_ids, (0, rest)), pad(position_ids, (0, rest)), torch.cat([subtree_end, ends[None]], 1)


@torch.compiler.disable  # a size that depends on the length in steps would have a compiler start anew for each step
def fill_for_kernels(
    input_ids: torch.Tensor, position_ids: torch.Tensor, subtree_end: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fill a forest (columns of shape [1, T]) up to its `filled_size`, for products in a precision."""
    size = filled_size(input_ids.shape[1], input_ids.device, dtype)
    return fill_forest(input_ids, position_ids, subtree_end, size)


def _round_up(tokens: int, step: int) -> int:
    return -(-tokens // step) * step
