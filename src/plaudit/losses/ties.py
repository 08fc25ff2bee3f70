"""Loss on comparisons of two rewards, some of which are ties."""

import torch
from torch.nn.functional import logsigmoid

from plaudit.losses.arguments import check_shapes, smooth_label

__all__ = ["rao_kupper"]


def rao_kupper(
    winner: torch.Tensor,
    loser: torch.Tensor,
    tie: torch.Tensor,
    threshold: torch.Tensor,
    margin: torch.Tensor | None = None,
    label: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Negative log-likelihood of a comparison that may be a tie, under the model of Rao and Kupper.

    Rewards closer than a threshold are hard to tell apart. With the threshold eta and `d = r_w - r_l`, the three
    probabilities, which sum to one, are

        P(first) = sigmoid(d - eta)
        P(second) = sigmoid(-d - eta)
        P(tie) = (exp(2 eta) - 1) P(first) P(second) = (1 - exp(-2 eta)) sigmoid(eta - d) sigmoid(eta + d)

    so that two equal rewards tie with probability `tanh(eta / 2)`. The loss of a tie is `-log P(tie)`. The loss of a
    decided comparison is `-q log P(first) - (1 - q) log P(second)` with `d - margin` in place of d, where
    `q = (1 - eps) p + eps (1 - p)`, p is the label and eps the label smoothing. Margin, label and label smoothing
    do not change the loss of ties.

    The model is that of Rao and Kupper (1967, "Ties in paired-comparison experiments", JASA 62, 194-204), with
    `theta = exp(eta)`; Liu, Ge and Zhu use it for reward models (2024, "Reward learning from preference with ties",
    arXiv:2410.05328). Unlike in the model of Davidson (1970, JASA 65, 317-328), a decided comparison is Bradley-Terry
    with a margin of eta: the threshold has the unit of the rewards, and at zero the model is Bradley-Terry.

    Args:
        winner: Rewards of the preferred sequences, or of either one in a tie, shape [C].
        loser: Rewards of the other sequences, shape [C].
        tie: Whether each comparison is a tie, bool, shape [C].
        threshold: The eta, 0 or more, shape []. Gradients flow to it. At 0 there are no ties: the loss of a tie, which
            should be infinite, stays finite (87 and more in float32) and has no gradient to the threshold. A softplus
            or an exponential keeps a learnt threshold above 0.
        margin: Least difference by which the winner should win, shape [C]; 0 where `None`.
        label: Probability p in [0, 1] that the winner is the better one, given that one is, shape [C]; 1 where `None`.
        label_smoothing: Probability eps that an annotator who decides prefers the worse one.

    Returns:
        One loss for each comparison, shape [C].

    Raises:
        ValueError: The shapes differ, `tie` is not bool, `threshold` is not a scalar or is negative, or
            `label_smoothing` is not between 0 and 1.

    Example:
        >>> import torch
        >>> from plaudit.losses import rao_kupper
        >>> winner, loser = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 0.0])
        >>> rao_kupper(winner, loser, tie=torch.tensor([False, True]), threshold=torch.tensor(1.0))
        tensor([0.3133, 0.7719])
    """
    check_shapes("C", winner=winner, loser=loser, tie=tie, margin=margin, label=label)
    _check_threshold(threshold)
    if tie.dtype != torch.bool:
        raise ValueError(f"expected tie to be a tensor of bool, got {tie.dtype}: use tie.bool()")
    difference = winner - loser
    z = difference if margin is None else difference - margin
    decided = -logsigmoid(z - threshold)
    q = smooth_label(label, label_smoothing)
    if label is not None or label_smoothing:
        decided = q * decided - (1 - q) * logsigmoid(-z - threshold)
    # Each term is positive and none overflows; with exp(2 eta), large thresholds would cancel or become inf - inf. The
    # clamp keeps the gradient finite at a threshold of 0, where it would be 0 times that of log 0.
    undecided = -torch.expm1(-2 * threshold).clamp(max=-torch.finfo(threshold.dtype).tiny)
    tied = -torch.log(undecided) - logsigmoid(threshold - difference) - logsigmoid(threshold + difference)
    return torch.where(tie, tied, decided)


def _check_threshold(threshold: torch.Tensor) -> None:
    if threshold.ndim:
        raise ValueError(f"expected threshold to be a scalar tensor of shape (), got {tuple(threshold.shape)}")
    if threshold < 0:
        raise ValueError(
            f"expected a threshold of zero or more, got {threshold.item()}: below zero the probabilities of winning "
            "and losing sum to more than one. Keep it positive with a softplus or an exponential."
        )
