"""Pure functions from rewards to losses: tensors in, tensor out. They know nothing of tokens, batches or trainers."""

from plaudit.losses.preference import bradley_terry, centering, hinge
from plaudit.losses.ranking import plackett_luce
from plaudit.losses.ties import rao_kupper

__all__ = ["bradley_terry", "centering", "hinge", "plackett_luce", "rao_kupper"]
