"""Saving so that no half-written folder ever stands where a good one did."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["staged_folder"]

# transformers takes "checkpoint-N" for a checkpoint; none of these names matches that.
_STAGING, _REPLACED = ".saving-", ".replaced-"


@contextmanager
def staged_folder(final: Path, *, keep_others: bool, writes: bool, barrier: Callable[[], None]) -> Iterator[Path]:
    """Write a folder beside its place, and put it there when it is whole.

    All processes enter, and each may write files into the folder that is yielded. When all have left it, the writing
    process renames it. Where anything fails, what stood there before still does.

    Args:
        final: Where the files shall be.
        keep_others: Whether `final` may hold other things that stay (an output folder with checkpoints in it). Then
            each file is renamed into it on its own; otherwise the whole folder is swapped.
        writes: Whether this process is the one that renames (one on each file system).
        barrier: Waits for all processes.

    Yields:
        The folder to write into.
    """
    final = final.absolute()
    # A folder that stays may be a mount point: what is renamed into it must already lie on its file system.
    inside = keep_others and final.is_dir()
    staging = final / f"{_STAGING}model" if inside else final.with_name(_STAGING + final.name)
    barrier()  # all have looked before anyone writes
    if writes:
        shutil.rmtree(staging, ignore_errors=True)  # left behind by a run that was killed while saving
        staging.mkdir(parents=True)
    barrier()
    try:
        yield staging
        barrier()
        if writes:
            _move_files(staging, final) if inside else _swap(staging, final)
    except BaseException:
        if writes:
            shutil.rmtree(staging, ignore_errors=True)
        raise
    barrier()


def _move_files(staging: Path, final: Path) -> None:
    for path in sorted(staging.iterdir()):
        if path.is_dir():
            shutil.rmtree(final / path.name, ignore_errors=True)
        os.replace(path, final / path.name)
    staging.rmdir()


def _swap(staging: Path, final: Path) -> None:
    if not final.exists():
        staging.rename(final)
        return
    replaced = final.with_name(_REPLACED + final.name)
    shutil.rmtree(replaced, ignore_errors=True)
    final.rename(replaced)
    staging.rename(final)
    shutil.rmtree(replaced)
