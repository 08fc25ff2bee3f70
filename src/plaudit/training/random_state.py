"""The random state of a process, which trial runs leave as it was."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["keep_random_state"]


@contextmanager
def keep_random_state() -> Iterator[None]:
    """Leave the random state of torch (on the CPU and all CUDA devices), NumPy and Python as it was."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
