"""Losses on comparisons of two rewards, one of which is better."""

import torch
from torch.nn.functional import logsigmoid, relu

from plaudit.losses.arguments import check_shapes, smooth_label

__all__ = ["bradley_terry", "centering", "hinge"]


def bradley_terry(
    winner: torch.Tensor,
    loser: torch.Tensor,
    margin: torch.Tensor | None = None,
    label: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Negative log-likelihood that the winner is preferred: `-log sigmoid(z)` where `z = r_w - r_l - margin`.

    Where the verdict is unsure, the cross-entropy `-q log sigmoid(z) - (1 - q) log sigmoid(-z)`, in which
    `q = (1 - eps) p + eps (1 - p)`, p is the label and eps the label smoothing.

    The model is Bradley and Terry's (Biometrika 39, 1952), the use for reward models that of Ouyang et al. (2022,
    arXiv:2203.02155, eq. 1), the margin that of Touvron et al. (Llama 2, arXiv:2307.09288, eq. 2), the smoothing that
    of Wang et al. (2024, "Secrets of RLHF in large language models, part II: reward modeling", arXiv:2401.06080).

    Args:
        winner: Rewards of the preferred sequences, shape [C].
        loser: Rewards of the others, shape [C].
        margin: By how much the winner should win, shape [C]; zero where `None`.
        label: Probability in [0, 1] that the winner is the better one, shape [C]; one where `None`.
        label_smoothing: Probability eps that an annotator's verdict is flipped.

    Returns:
        One loss for each comparison, shape [C].

    Raises:
        ValueError: The shapes differ; [C, 1] against [C] would silently broadcast into [C, C]. Or `label_smoothing` is
            not a probability.
    """
    z = _lead(winner, loser, margin, label)
    q = smooth_label(label, label_smoothing)
    if label is None and not label_smoothing:
        return -logsigmoid(z)
    return -q * logsigmoid(z) - (1 - q) * logsigmoid(-z)


def hinge(
    winner: torch.Tensor,
    loser: torch.Tensor,
    margin: torch.Tensor | None = None,
    label: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """How far the winner is from winning by one: `max(0, 1 - z)` where `z = r_w - r_l - margin`.

    Where the verdict is unsure, `q max(0, 1 - z) + (1 - q) max(0, 1 + z)`, in which `q = (1 - eps) p + eps (1 - p)`, p
    is the label and eps the label smoothing. A comparison that is won by one has no gradient, so rewards stop growing;
    but no probability can be read off them: whatever q is above one half, the loss is least at `z = 1`.

    The ranking support vector machine of Herbrich, Graepel and Obermayer (1999, "Support vector learning for ordinal
    regression") and of Joachims (2002, "Optimizing search engines using clickthrough data").

    Args:
        winner: Rewards of the preferred sequences, shape [C].
        loser: Rewards of the others, shape [C].
        margin: By how much more than one the winner should win, shape [C]; zero where `None`.
        label: Probability in [0, 1] that the winner is the better one, shape [C]; one where `None`.
        label_smoothing: Probability eps that an annotator's verdict is flipped.

    Returns:
        One loss for each comparison, shape [C].

    Raises:
        ValueError: The shapes differ, or `label_smoothing` is not a probability.
    """
    z = _lead(winner, loser, margin, label)
    q = smooth_label(label, label_smoothing)
    if label is None and not label_smoothing:
        return relu(1 - z)
    return q * relu(1 - z) + (1 - q) * relu(1 + z)


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
    check_shapes("C", winner=winner, loser=loser)
    return (winner + loser) ** 2


def _lead(
    winner: torch.Tensor, loser: torch.Tensor, margin: torch.Tensor | None, label: torch.Tensor | None
) -> torch.Tensor:
    check_shapes("C", winner=winner, loser=loser, margin=margin, label=label)
    difference = winner - loser
    return difference if margin is None else difference - margin
