"""What the benchmarks measure of the machine: memory of this process, and how fast it multiplies a model's matrices."""

import ctypes
import gc
import time
from pathlib import Path

import torch
from torch import nn

_STATUS = Path("/proc/self/status")


def _status(name):
    """A figure of this process in bytes, as the kernel tells it."""
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def start_measuring_memory():
    """Give back what is not in use, let the peak start from here, and return the bytes resident now. Linux only."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # 5: the peak becomes the present size
    return _status("VmRSS")


def peak_memory():
    """The most bytes resident since `start_measuring_memory`."""
    return _status("VmHWM")


def linear_shapes(model):
    """Shape (out, in) of every linear layer of the backbone. The head is left out: it sees a few rows."""
    return [tuple(m.weight.shape) for m in model.base_model.modules() if isinstance(m, nn.Linear)]


def matrix_rate(shapes, tokens, *, forwards=1, repeats=5):
    """FLOP/s of the bf16 products that the layers of these shapes need for so many tokens; best of `repeats`.

    For a layer these are its product forward (`forwards` times, 2 where checkpointing computes it again) and the two
    backward, in the layouts in which autograd asks for them. Rates of the shapes are weighted by their FLOPs.
    """
    seconds = flops = 0
    for shape in set(shapes):
        rows, columns = shape
        weight = torch.randn(rows, columns, dtype=torch.bfloat16)
        inputs = torch.randn(tokens, columns, dtype=torch.bfloat16)
        above = torch.randn(tokens, rows, dtype=torch.bfloat16)
        products = [(forwards, lambda: nn.functional.linear(inputs, weight)), (1, lambda: above @ weight)]  # noqa: B023
        products.append((1, lambda: above.T @ inputs))  # noqa: B023
        for count, product in products:
            count *= shapes.count(shape)
            seconds += count * _best_time(product, repeats)
            flops += count * 2 * tokens * rows * columns
    return flops / seconds


def _best_time(run, repeats):
    run()  # the first call makes the kernel
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
