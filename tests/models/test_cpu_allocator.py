"""The allocator that keeps freed memory, in processes of their own: the setting cannot be taken back."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from plaudit.models.cpu_allocator import keep_freed_memory
assert keep_freed_memory() == {kept}
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def fill(times):
    for _ in range(times): torch.ones(7 << 20)  # 28 MiB
fill(40)  # small objects take pieces of the first freed tensors
before = faults()
fill(20)
print(faults() - before)
"""
on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def page_faults(kept, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROGRAM.format(kept=kept)]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@on_glibc
def test_a_large_tensor_takes_the_memory_of_the_one_before():
    pages = 20 * 7 * 1024  # of 4 KiB
    assert page_faults(kept=True) < pages / 2


@on_glibc
@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}],
    ids=["MALLOC_", "tunables"],
)
def test_an_environment_that_sets_the_allocator_is_left_alone(environment):
    page_faults(False, **environment)


@pytest.mark.parametrize("library", ["", "musl"])
def test_another_c_library_is_left_alone(library, monkeypatch):
    from plaudit.models.cpu_allocator import keep_freed_memory

    monkeypatch.setattr(platform, "libc_ver", lambda: (library, ""))
    keep_freed_memory.cache_clear()
    try:
        assert not keep_freed_memory()
    finally:
        keep_freed_memory.cache_clear()
