"""Loss on groups of ranked rewards."""

import torch
from torch.nn.functional import logsigmoid

from plaudit.losses.arguments import check_shapes, smooth_label

__all__ = ["plackett_luce"]


def plackett_luce(
    rewards: torch.Tensor,
    row: torch.Tensor,
    rank: torch.Tensor,
    margin: torch.Tensor | None = None,
    label: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of rankings under the model of Plackett and Luce, stage by stage.

    The best sequence of a group is chosen among all, the next one among those left, and so on. Each sequence i that has
    a strictly worse one in its group makes one stage, among the candidates `{j: row_j = row_i, rank_j >= rank_i}`, with
    the loss `nll_i = log sum_j exp(r_j) - r_i`. The losses of a group sum to the negative log-likelihood of its
    ranking. Sequences of equal rank are each chosen among all that are no better, which includes the others of this
    rank (the approximation of Breslow, 1974, Biometrics 30, 89-99, for tied survival times). The last rank makes no
    stage, and neither does a group of one rank.

    With label smoothing eps the loss of a stage is `(1 - eps) nll_i` plus eps times the mean `nll_j` of the other
    candidates (Szegedy et al., 2016, arXiv:1512.00567, over the others alone). A group of two is a comparison: its loss
    is to the bit that of `bradley_terry`, with margin, label and label smoothing.

    The model is that of Luce (1959, "Individual choice behavior") and Plackett (1975, "The analysis of permutations",
    Applied Statistics 24, 193-202).

    Args:
        rewards: Rewards of all sequences, in any order, shape [N].
        row: Group of each sequence, whole numbers, shape [N].
        rank: Rank of each sequence in its group, shape [N]: lower is better, equal is tied. Only the order counts.
        margin: Least difference by which the better sequence of a group of two should win, indexed by `row`, shape [R];
            0 for larger groups, and where `None`.
        label: Probability in [0, 1] that the better-ranked sequence of a group of two is the better one, indexed by
            `row`, shape [R]; 1 for larger groups, and where `None`.
        label_smoothing: Probability eps that an annotator chooses any other candidate instead.

    Returns:
        One loss for each stage, shape [S], in the order of the chosen sequences, and the `row` of each stage, shape
        [S]. A tied group of two has no stage, whatever its margin and label.

    Raises:
        ValueError: The shapes differ, `row` does not hold indices, a group of more than two has a margin other than 0
            or a label other than 1, or `label_smoothing` is not between 0 and 1.

    Example:
        >>> import torch
        >>> from plaudit.losses import plackett_luce
        >>> rewards = torch.tensor([3.0, 2.0, 1.0, 1.0, 0.0])
        >>> row, rank = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 1, 0])
        >>> losses, stage_row = plackett_luce(rewards, row, rank)
        >>> losses
        tensor([0.4076, 0.3133, 1.3133])
        >>> stage_row
        tensor([0, 0, 1])
    """
    check_shapes("N", rewards=rewards, row=row, rank=rank)
    check_shapes("R", margin=margin, label=label)
    if row.is_floating_point() or row.dtype == torch.bool:
        raise ValueError(f"expected row to be a tensor of integers, got {row.dtype}")
    rows, group, size = row.unique(return_inverse=True, return_counts=True)
    _check_rows(rows, size, margin, label)
    chosen, candidates, rivals = _stages(group, size, rank)
    stage_row = row[chosen]
    # A choice compares the chosen sequence with the log-sum-exp of its rivals. Differences are taken first: they are
    # exact where the log-sum-exp of large rewards is rounded, and a stage of one rival is Bradley-Terry to the bit.
    gap = rewards[chosen, None] - rewards[candidates]  # [S, K]
    z = -(-gap).masked_fill(~rivals, float("-inf")).logsumexp(dim=1)  # [S]
    if margin is not None:
        z = z - margin[stage_row]
    losses = -logsigmoid(z)
    q = smooth_label(None if label is None else label[stage_row], label_smoothing)
    if label is not None or label_smoothing:
        count = rivals.sum(dim=1)
        mean_gap = gap.masked_fill(~rivals, 0.0).sum(dim=1) / count
        others = torch.where(count == 1, -logsigmoid(-z), losses + mean_gap)  # since nll_j = nll_i + r_i - r_j
        losses = q * losses + (1 - q) * others
    return losses, stage_row


def _stages(
    group: torch.Tensor, size: torch.Tensor, rank: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the chosen sequences [S], the members of each one's group [S, K], and which are its rivals [S, K]."""
    present = torch.arange(max(size.tolist(), default=0), device=size.device) < size[:, None]  # [G, K]
    members = torch.zeros_like(present, dtype=torch.long)
    members[present] = group.argsort(stable=True)  # group by group, as a mask is filled
    candidates, present = members[group], present[group]  # [N, K]
    has_worse = (present & (rank[candidates] > rank[:, None])).any(dim=1)
    chosen = has_worse.nonzero().squeeze(1)
    candidates, present = candidates[chosen], present[chosen]  # [S, K]
    rivals = present & (rank[candidates] >= rank[chosen, None]) & (candidates != chosen[:, None])
    return chosen, candidates, rivals


def _check_rows(
    rows: torch.Tensor, size: torch.Tensor, margin: torch.Tensor | None, label: torch.Tensor | None
) -> None:
    large = rows[size > 2]
    for name, column, neutral in (("margin", margin, 0), ("label", label, 1)):
        if column is None:
            continue
        if ((rows < 0) | (rows >= len(column))).any():
            raise ValueError(f"expected every row to index {name}, of length {len(column)}, got rows {rows.tolist()}")
        wrong = large[column[large] != neutral].tolist()
        if wrong:
            raise ValueError(
                f"a {name} applies to two sequences: expected {neutral} for groups of more than two, got "
                f"{column[wrong].tolist()} for the rows {wrong}"
            )
