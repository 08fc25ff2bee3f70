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
    """Negative log-likelihood of a comparison under the model of Bradley and Terry.

    The loss is `-log sigmoid(z)` where `z = r_w - r_l - margin`. With a label p or label smoothing eps it is the
    cross-entropy `-q log sigmoid(z) - (1 - q) log sigmoid(-z)` where `q = (1 - eps) p + eps (1 - p)`.

    The model is that of Bradley and Terry (1952, Biometrika 39, 324-345). Ouyang et al. (2022, arXiv:2203.02155, eq. 1)
    use it for reward models; the margin is that of Touvron et al. (2023, Llama 2, arXiv:2307.09288, eq. 2), the
    smoothing that of Wang et al. (2024, "Secrets of RLHF in large language models, part II: reward modeling",
    arXiv:2401.06080).

    Args:
        winner: Rewards of the preferred sequences, shape [C].
        loser: Rewards of the other sequences, shape [C].
        margin: Least difference by which the winner should win, shape [C]; 0 where `None`.
        label: Probability p in [0, 1] that the winner is the better one, shape [C]; 1 where `None`.
        label_smoothing: Probability eps that an annotator prefers the worse one.

    Returns:
        One loss for each comparison, shape [C].

    Raises:
        ValueError: The shapes differ, or `label_smoothing` is not between 0 and 1.

    Example:
        >>> import torch
        >>> from plaudit.losses import bradley_terry
        >>> winner, loser = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 0.0])
        >>> bradley_terry(winner, loser)
        tensor([0.1269, 0.6931])
        >>> bradley_terry(winner, loser, margin=torch.tensor([2.0, 0.0]))
        tensor([0.6931, 0.6931])
        >>> bradley_terry(winner, loser, label=torch.tensor([0.75, 0.75]))
        tensor([0.6269, 0.6931])
    """
    z = _difference(winner, loser, margin, label)
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
    """Distance of a comparison from being won by one: the loss of a ranking support vector machine.

    The loss is `max(0, 1 - z)` where `z = r_w - r_l - margin`. With a label p or label smoothing eps it is
    `q max(0, 1 - z) + (1 - q) max(0, 1 + z)` where `q = (1 - eps) p + eps (1 - p)`. A comparison that is won by one has
    no gradient, so rewards stop growing. But rewards are no log-odds: for every q above one half the loss is least at
    `z = 1`.

    The ranking support vector machine is that of Herbrich, Graepel and Obermayer (1999, "Support vector learning for
    ordinal regression") and of Joachims (2002, "Optimizing search engines using clickthrough data").

    Args:
        winner: Rewards of the preferred sequences, shape [C].
        loser: Rewards of the other sequences, shape [C].
        margin: Difference by which the winner should win beyond one, shape [C]; 0 where `None`.
        label: Probability p in [0, 1] that the winner is the better one, shape [C]; 1 where `None`.
        label_smoothing: Probability eps that an annotator prefers the worse one.

    Returns:
        One loss for each comparison, shape [C].

    Raises:
        ValueError: The shapes differ, or `label_smoothing` is not between 0 and 1.

    Example:
        >>> import torch
        >>> from plaudit.losses import hinge
        >>> winner, loser = torch.tensor([2.0, 0.5, 0.0]), torch.tensor([0.0, 0.0, 1.0])
        >>> hinge(winner, loser)
        tensor([0.0000, 0.5000, 2.0000])
        >>> hinge(winner, loser, label_smoothing=0.25)
        tensor([0.7500, 0.7500, 1.5000])
    """
    z = _difference(winner, loser, margin, label)
    q = smooth_label(label, label_smoothing)
    if label is None and not label_smoothing:
        return relu(1 - z)
    return q * relu(1 - z) + (1 - q) * relu(1 + z)


def centering(winner: torch.Tensor, loser: torch.Tensor) -> torch.Tensor:
    """Penalty on rewards that are far from zero: `(r_w + r_l)^2` (Eisenstein et al., 2023, arXiv:2312.09244, eq. 2).

    The losses of comparisons determine rewards up to a constant for each prompt. This penalty, with a weight of about
    0.01, determines the constant.

    Args:
        winner: Rewards of the preferred sequences, shape [C].
        loser: Rewards of the other sequences, shape [C].

    Returns:
        One penalty for each comparison, shape [C].

    Raises:
        ValueError: The shapes differ.

    Example:
        >>> import torch
        >>> from plaudit.losses import centering
        >>> centering(torch.tensor([2.0, 2.0]), torch.tensor([-2.0, 1.0]))
        tensor([0., 9.])
    """
    check_shapes("C", winner=winner, loser=loser)
    return (winner + loser) ** 2


def _difference(
    winner: torch.Tensor, loser: torch.Tensor, margin: torch.Tensor | None, label: torch.Tensor | None
) -> torch.Tensor:
    check_shapes("C", winner=winner, loser=loser, margin=margin, label=label)
    difference = winner - loser
    return difference if margin is None else difference - margin
