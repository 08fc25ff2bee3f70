"""Measure how often the first cosine of a process is coarse: a race in MKL's vector mathematics, without Plaudit.

PyTorch 2.13 computes cos, sin, tan, asin, acos, atan, tanh, exp, log, log2, log10, sqrt, erf, erfc and erfinv of
contiguous float32 and float64 tensors with MKL 2024.2, each thread on a piece of its own from 2,048 elements on. The
first call of a process finds out what the processor can do and keeps the answer in one variable, for all functions and
threads. `mkl_vml_serv_cpu_detect` writes that variable twice: first the kind of the processor (9 with AVX-512), then
the column of the table of kernels for that kind (5). A thread whose call begins between the two writes takes 9 for the
column. The rows of the table (low, high and coarse accuracy) have 6 columns each, so 6 + 9 leads to 12 + 3: the coarse
kernel for AVX2. This thread's piece of this one call is right to about 12 bits: a cosine is off by up to 1.5e-4 instead
of 4e-8. All later calls are right. Between the two writes the processor reads a constant that no code of the process
has touched before; where its page must come from the disk, the gap between the writes is long. With AVX2 alone the
wrong place of the table holds an accurate kernel. The race is https://github.com/pytorch/pytorch/issues/188792.

The script compares the first and the second cosine in `--processes` processes, forked before any thread or function of
MKL ran. Each of them first asks the kernel to drop the unused pages of torch's library from memory, as on a machine
that has just started or is short of memory; pages that another process has in use stay. `--keep_cache` leaves that out.
With `--remedy` a cosine of one element, in which no second thread takes part, comes first. The last line shows the
coarse kernel itself, with the variable set by hand to what the other thread reads. Linux on x86-64 with AVX-512 only.

Usage: python benchmarks/first_cosine.py [--processes 300] [--keep_cache] [--remedy]
"""

import argparse
import ctypes
import os
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from results import add_output, write_results

LIBRARY = Path(torch.__path__[0], "lib", "libtorch_cpu.so")
# Filled by numpy: torch would start threads, and a process with threads cannot be forked safely.
ANGLES = torch.from_numpy(np.linspace(0, 60, 7168, dtype=np.float32))
LARGE = torch.from_numpy(np.ones(1 << 17, dtype=np.float32))


def drop_cached_pages():
    """Ask the kernel to drop the pages of torch's library that no process has in use from memory."""
    file = os.open(LIBRARY, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


@contextmanager
def coarse_kernels():
    """Set MKL's choice of kernels to the value that a thread reads between the two writes, for a while.

    Raises:
        RuntimeError: torch has no MKL, or one that keeps its choice elsewhere.
    """
    library = ctypes.CDLL(str(LIBRARY))
    try:
        library.mkl_vml_serv_cpu_detect()  # makes the choice, if no call has made it
        detect = ctypes.cast(library.mkl_vml_serv_cpu_detect, ctypes.c_void_p).value
        kind = library.mkl_serv_vml_cpu_detect()
    except AttributeError as error:
        raise RuntimeError("this torch was built without MKL") from error
    code = ctypes.string_at(detect, 6)
    if code[:2] != b"\x8b\x05":  # mov eax, [rip + offset]: the first instruction reads the variable
        raise RuntimeError("this MKL keeps its choice of kernels elsewhere")
    choice = ctypes.c_int.from_address(detect + 6 + int.from_bytes(code[2:], "little", signed=True))
    right, choice.value = choice.value, kind
    try:
        yield
    finally:
        choice.value = right


def prepare(*, keep_cache, remedy):
    """Bring this process to where a model's first forward finds it: with threads, which wait for work."""
    LARGE + 1
    if not keep_cache:
        drop_cached_pages()
    time.sleep(0.01)
    if remedy:
        torch.zeros(1).cos()


def in_fork(run):
    """Return the text that a function returns in a fork of this process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, run().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


def parse_options(description, processes):
    """The options that this script shares with `first_forward.py`, still to be parsed."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--processes", type=int, default=processes)
    parser.add_argument("--keep_cache", action="store_true")
    add_output(parser)
    return parser


def describe_machine():
    return (
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )


def difference(first, second):
    return f"{int((first != second).sum())} of {len(ANGLES)} differ, by up to {(first - second).abs().max().item():.3g}"


def naturally(options):
    prepare(keep_cache=options.keep_cache, remedy=options.remedy)
    return difference(ANGLES.cos(), ANGLES.cos())


def by_hand():
    with coarse_kernels():
        coarse = ANGLES.cos()
    return difference(coarse, ANGLES.cos())


def main():
    parser = parse_options(__doc__, 300)
    parser.add_argument("--remedy", action="store_true")
    options = parser.parse_args()
    counts = Counter(in_fork(lambda: naturally(options)) for _ in range(options.processes))
    print(describe_machine())
    for text, count in counts.most_common():
        print(f"{count:6} processes, first against second cosine: {text}")
    print(f"coarse against accurate kernel: {in_fork(by_hand)}")
    write_results(options.output, [{"first against second cosine": text, "processes": counts[text]} for text in counts])


if __name__ == "__main__":
    main()
