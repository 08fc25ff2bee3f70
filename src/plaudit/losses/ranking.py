"""The loss on groups of ranked rewards."""

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
    """Negative log-likelihood of a ranking, in stages: the best is chosen among all, the next among those left, ...

    Each sequence i that has something strictly worse in its group makes one stage, over the candidates
    `{j: row_j = row_i, rank_j >= rank_i}`, and its loss is `nll_i = log sum_j exp(r_j) - r_i`. A group's losses sum to
    the negative log-likelihood of its ranking. Of equal ranks each is chosen from all that are no better, the others
    of its rank included (Breslow's approximation, 1974, Biometrics 30, 89-99, which he made for tied survival times);
    the last rank makes no stage, so a group of one rank makes none.

    With label smoothing eps a stage's loss is `(1 - eps) nll_i` plus eps times the mean `nll_j` of the other candidates
    (Szegedy et al., 2016, arXiv:1512.00567, over the others alone). A group of two is a comparison, and its loss is to
    the bit that of `bradley_terry`, with margin, label and label smoothing.

    The model is that of Luce (1959, "Individual choice behavior") and Plackett (1975, "The analysis of permutations",
    Applied Statistics 24, 193-202).

    Args:
        rewards: Rewards of all sequences, in any order, shape [N].
        row: Which group each belongs to, integers, shape [N].
        rank: The place of each in its group, shape [N]: lower is better, equal is tied. Only the order counts.
        margin: By how much the better one of a group of two should win, indexed by `row`, shape [R]; zero for groups of
            more than two, and where `None`.
        label: Probability in [0, 1] that the better-ranked one of a group of two is the better one, indexed by `row`,
            shape [R]; one for groups of more than two, and where `None`.
        label_smoothing: Probability eps that a choice is not the chosen one but any other candidate.

    Returns:
        One loss for each stage, shape [S], in the order of the sequences that are chosen, and the `row` of each, [S].
        Neither margin nor label changes anything where a group of two is tied: it has no stage.

    Raises:
        ValueError: The shapes differ, `row` is no index, a group of more than two has a margin other than zero or a
            label other than one, or `label_smoothing` is not a probability.
    """
    check_shapes("N", rewards=rewards, row=row, rank=rank)
    check_shapes("R", margin=margin, label=label)
    _check_rows(row, margin, label)
    chosen, candidates, rivals = _stages(row, rank)
    stage_row = row[chosen]
    # Choosing one is a comparison of it with the log-sum-exp of its rivals. Differences first: they are exact where the
    # log-sum-exp of large rewards is rounded, and a stage of one rival is then Bradley-Terry's to the bit.
    gap = rewards[chosen, None] - rewards[candidates]  # [S, K]
    lead = -(-gap).masked_fill(~rivals, float("-inf")).logsumexp(dim=1)  # [S]
    if margin is not None:
        lead = lead - margin[stage_row]
    losses = -logsigmoid(lead)
    q = smooth_label(None if label is None else label[stage_row], label_smoothing)
    if label is not None or label_smoothing:
        count = rivals.sum(dim=1)
        mean_gap = gap.masked_fill(~rivals, 0.0).sum(dim=1) / count
        others = torch.where(count == 1, -logsigmoid(-lead), losses + mean_gap)  # as nll_j = nll_i + r_i - r_j
        losses = q * losses + (1 - q) * others
    return losses, stage_row


def _stages(row: torch.Tensor, rank: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Who is chosen [S], the members of the group of each [S, K], and which of them are its rivals [S, K]."""
    _, group, size = row.unique(return_inverse=True, return_counts=True)
    present = torch.arange(max(size.tolist(), default=0), device=row.device) < size[:, None]  # [G, K]
    members = torch.zeros_like(present, dtype=torch.long)
    members[present] = group.argsort(stable=True)  # group after group, as the mask is filled
    candidates, present = members[group], present[group]  # [N, K]
    has_worse = (present & (rank[candidates] > rank[:, None])).any(dim=1)
    chosen = has_worse.nonzero().squeeze(1)
    candidates, present = candidates[chosen], present[chosen]  # [S, K]
    rivals = present & (rank[candidates] >= rank[chosen, None]) & (candidates != chosen[:, None])
    return chosen, candidates, rivals


def _check_rows(row: torch.Tensor, margin: torch.Tensor | None, label: torch.Tensor | None) -> None:
    if row.is_floating_point() or row.dtype == torch.bool:
        raise ValueError(f"expected row to be a tensor of integers, got {row.dtype}")
    rows, size = row.unique(return_counts=True)
    large = rows[size > 2]
    for name, column, neutral in (("margin", margin, 0), ("label", label, 1)):
        if column is None:
            continue
        if ((rows < 0) | (rows >= len(column))).any():
            raise ValueError(f"expected every row to index {name}, of length {len(column)}, got rows {rows.tolist()}")
        wrong = large[column[large] != neutral].tolist()
        if wrong:
            raise ValueError(
                f"a {name} is between two sequences: expected {neutral} for groups of more than two, got "
                f"{column[wrong].tolist()} for the rows {wrong}"
            )
