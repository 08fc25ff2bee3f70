"""What the benchmarks measure of the machine: memory of this process, and how fast it multiplies a model's matrices.

Memory is that of the process on the CPU, and what tensors take on a GPU. Devices are named "cpu" or "cuda".
"""

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


def start_measuring_memory(device="cpu"):
    """Give back what is not in use, let the peak start from here, and return the bytes taken now. Linux only."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # 5: the peak becomes the present size
    return _status("VmRSS")


def peak_memory(device="cpu"):
    """The most bytes taken since `start_measuring_memory`."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def device_name(device):
    """What a person calls it."""
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def now(device="cpu"):
    """The time in seconds, once the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def linear_shapes(model):
    """Shape (out, in) of every linear layer of the backbone. The head is left out: it sees a few rows."""
    return [tuple(m.weight.shape) for m in model.base_model.modules() if isinstance(m, nn.Linear)]


def matrix_rate(shapes, tokens, *, forwards=1, repeats=5, device="cpu", dtype=torch.bfloat16):
    """FLOP/s of the products that the layers of these shapes need for so many tokens; best of `repeats`.

    For a layer these are its product forward (`forwards` times, 2 where checkpointing computes it again) and the two
    backward, in the layouts in which autograd asks for them. Rates of the shapes are weighted by their FLOPs.
    """
    seconds = flops = 0
    for shape in set(shapes):
        rows, columns = shape
        weight = torch.randn(rows, columns, dtype=dtype, device=device)
        inputs = torch.randn(tokens, columns, dtype=dtype, device=device)
        above = torch.randn(tokens, rows, dtype=dtype, device=device)
        products = [(forwards, lambda: nn.functional.linear(inputs, weight)), (1, lambda: above @ weight)]  # noqa: B023
        products.append((1, lambda: above.T @ inputs))  # noqa: B023
        for count, product in products:
            count *= shapes.count(shape)
            seconds += count * _best_time(product, repeats, device)
            flops += count * 2 * tokens * rows * columns
    return flops / seconds


def _best_time(run, repeats, device):
    run()  # the first call makes the kernel
    times = []
    for _ in range(repeats):
        start = now(device)
        run()
        times.append(now(device) - start)
    return min(times)
