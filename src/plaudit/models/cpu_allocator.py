"""The allocator of a process that computes on the CPU, which keeps the memory of freed tensors for the next ones."""

import ctypes
import os
import platform
from functools import cache

__all__ = ["keep_freed_memory"]

# Parameters of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = -1
_LARGEST_KEPT = (1 << 30, 32 << 20)  # bytes of one tensor; glibc before 2.36 may refuse more than 32 MiB


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep the memory of freed tensors up to 1 GiB each, or up to 32 MiB; return whether it does.

    By default, glibc returns the memory of a large tensor to the kernel when the tensor is freed, and the kernel maps
    and clears other memory for the next tensor. An elementwise operation on a large tensor then takes twice as long.
    The setting holds for the whole process and is made once. It is left alone where the environment sets the allocator
    (`MALLOC_...` or `GLIBC_TUNABLES`), and where the C library is another one.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    if any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST_KEPT) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
