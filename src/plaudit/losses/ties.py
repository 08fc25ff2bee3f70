"""The loss on comparisons of two rewards, some of which are ties."""

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
    """Negative log-likelihood of a verdict that may be a tie: nobody tells rewards apart that are within a threshold.

    With the threshold eta and `d = r_w - r_l`, the three probabilities, which sum to one, are

        P(first) = sigmoid(d - eta)
        P(second) = sigmoid(-d - eta)
        P(tie) = (exp(2 eta) - 1) P(first) P(second) = (1 - exp(-2 eta)) sigmoid(eta - d) sigmoid(eta + d)

    so that two equal rewards tie with probability `tanh(eta / 2)`. A tie's loss is `-log P(tie)`. A decided row's is
    `-q log P(first) - (1 - q) log P(second)` with `d - margin` in place of d and `q = (1 - eps) p + eps (1 - p)`, where
    p is the label and eps the label smoothing. Margin, label and label smoothing say who won and by how much: they do
    not touch ties.

    The model is that of Rao and Kupper (1967, "Ties in paired-comparison experiments", JASA 62, 194-204), with
    `theta = exp(eta)`; for reward models Liu, Ge and Zhu use it (2024, "Reward learning from preference with ties",
    arXiv:2410.05328). Why it, and not Davidson's (1970, JASA 65, 317-328): its decided rows are Bradley-Terry with a
    margin of eta, so the threshold is in the unit of the rewards, and at zero it is Bradley-Terry.

    Args:
        winner: Rewards of the preferred sequences, shape [C]; of either one in a tie.
        loser: Rewards of the others, shape [C].
        tie: Whether the verdict is a tie, bool, shape [C].
        threshold: The eta, zero or more, shape []. It may be learnt: the gradient flows. At zero there are no ties, and
            the loss of one, where it should be infinite, stays finite (87 and more in float32), with no gradient to
            the threshold; a softplus or an exponential keeps it above.
        margin: By how much the winner should win, shape [C]; zero where `None`.
        label: Probability in [0, 1] that the winner is the better one, given that one is, shape [C]; one where `None`.
        label_smoothing: Probability eps that an annotator's verdict for one of the two is flipped.

    Returns:
        One loss for each comparison, shape [C].

    Raises:
        ValueError: The shapes differ, `tie` is not bool, `threshold` is not a scalar or is negative, or
            `label_smoothing` is not a probability.
    """
    check_shapes("C", winner=winner, loser=loser, tie=tie, margin=margin, label=label)
    _check_threshold(threshold)
    if tie.dtype != torch.bool:
        raise ValueError(f"expected tie to be a tensor of bool, got {tie.dtype}: use tie.bool()")
    difference = winner - loser
    lead = difference if margin is None else difference - margin
    decided = -logsigmoid(lead - threshold)
    q = smooth_label(label, label_smoothing)
    if label is not None or label_smoothing:
        decided = q * decided - (1 - q) * logsigmoid(-lead - threshold)
    # Each term is positive and none overflows: written with exp(2 eta), large thresholds cancel, or become inf - inf.
    # Without the clamp a threshold of zero gives decided rows a NaN, as zero times the gradient of log 0.
    undecided = -torch.expm1(-2 * threshold).clamp(max=-torch.finfo(threshold.dtype).tiny)
    tied = -torch.log(undecided) - logsigmoid(threshold - difference) - logsigmoid(threshold + difference)
    return torch.where(tie, tied, decided)


def _check_threshold(threshold: torch.Tensor) -> None:
    if threshold.ndim:
        raise ValueError(f"expected threshold to be a scalar tensor of shape (), got {tuple(threshold.shape)}")
    if threshold < 0:
        raise ValueError(
            f"expected a threshold of zero or more, got {threshold.item()}: below zero the probabilities of winning "
            "and losing sum to more than one. Keep it positive by a softplus or an exponential."
        )
