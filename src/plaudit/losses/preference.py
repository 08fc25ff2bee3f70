"""Losses on comparisons of two rewards."""

import torch
from torch.nn.functional import logsigmoid

__all__ = ["bradley_terry", "centering"]


def bradley_terry(winner: torch.Tensor, loser: torch.Tensor, margin: torch.Tensor | None = None) -> torch.Tensor:
    """Negative log-likelihood that the winner is preferred: `-log sigmoid(r_w - r_l - margin)`.

    The model is Bradley and Terry's (Biometrika 39, 1952), the use for reward models that of Ouyang et al. (2022,
    arXiv:2203.02155, eq. 1), the margin that of Touvron et al. (Llama 2, arXiv:2307.09288, eq. 2).

    Args:
        winner: Rewards of the preferred sequences, shape [C].
        loser: Rewards of the others, shape [C].
        margin: By how much the winner should win, shape [C]; zero where `None`.

    Returns:
        One loss for each comparison, shape [C].

    Raises:
        ValueError: The shapes differ; [C, 1] against [C] would silently broadcast into [C, C].
    """
    _check_shapes(winner=winner, loser=loser, margin=margin)
    difference = winner - loser
    return -logsigmoid(difference if margin is None else difference - margin)


def centering(winner: torch.Tensor, loser: torch.Tensor) -> torch.Tensor:
    """The pull of rewards towards zero: `(r_w + r_l)^2` (Eisenstein et al., 2023, arXiv:2312.09244, eq. 2).

    The preference loss fixes rewards up to a constant for each prompt; this term, weighted by about 0.01, fixes the
    constant.

    Args:
        winner: Rewards of the preferred sequences, shape [C].
        loser: Rewards of the others, shape [C].

    Returns:
        One penalty for each comparison, shape [C].

    Raises:
        ValueError: The shapes differ.
    """
    _check_shapes(winner=winner, loser=loser)
    return (winner + loser) ** 2


def _check_shapes(**tensors: torch.Tensor | None) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor is not None}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"expected one-dimensional tensors of one shape [C], got {shapes}")
