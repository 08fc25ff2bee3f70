"""Losses as pure functions: from tensors of rewards to a tensor of losses, one for each comparison or choice.

The functions know no tokens, no batches and no trainer. They take no mean: the caller weights and sums.
"""

from plaudit.losses.preference import bradley_terry, centering, hinge
from plaudit.losses.ranking import plackett_luce
from plaudit.losses.ties import rao_kupper

__all__ = ["bradley_terry", "centering", "hinge", "plackett_luce", "rao_kupper"]
