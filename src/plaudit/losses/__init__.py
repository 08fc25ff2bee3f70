"""Pure functions from rewards to losses: tensors in, tensor out. They know nothing of tokens, batches or trainers."""

from plaudit.losses.preference import bradley_terry, centering

__all__ = ["bradley_terry", "centering"]
