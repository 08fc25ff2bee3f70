"""Saving so that no half-written folder ever stands where a good one did."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["staged_folder"]

# transformers takes "checkpoint-N" for a checkpoint, and uploads to the hub what does not begin with "_".
_STAGING, _REPLACED = "_saving-", "_replaced-"
# What another kind of model may have left in an output folder; a loader would take it for this one's.
_MODEL_FILES = ("adapter_*", "config.json", "model*.safetensors*", "pytorch_model*")


@contextmanager
def staged_folder(
    final: Path, *, keep_others: bool, writes: bool, barrier: Callable[[], None], first_of_node: bool = True
) -> Iterator[Path]:
    """Write a folder beside its place, and put it there when it is whole.

    All processes enter, and each may write files into the folder that is yielded. When all have left it, it is renamed.
    If writing fails or is killed, what stood there before still does. (With `keep_others` the files are renamed one
    after the other: a kill in that instant can leave old ones beside new ones, but none half-written.)

    Args:
        final: Where the files shall be.
        keep_others: Whether `final` may hold other things that stay (an output folder with checkpoints in it). Then
            each file is renamed into it on its own; otherwise the whole folder is swapped.
        writes: Whether this process makes the folder and renames it; one does.
        barrier: Waits for all processes.
        first_of_node: Whether this process does the same on its node, if that has a file system of its own.

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
    if first_of_node and not staging.is_dir():
        writes = True
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
    # The configuration last: a folder without one loads nowhere, so a first save is whole or not there.
    paths = sorted(staging.iterdir(), key=lambda path: (path.name.endswith("config.json"), path.name))
    for path in paths:
        if path.is_dir():
            shutil.rmtree(final / path.name, ignore_errors=True)
        os.replace(path, final / path.name)
    staging.rmdir()
    names = {path.name for path in paths}
    for stale in (path for pattern in _MODEL_FILES for path in final.glob(pattern)):
        if stale.name not in names:
            stale.unlink(missing_ok=True)


def _swap(staging: Path, final: Path) -> None:
    if not final.exists():
        staging.rename(final)
        return
    replaced = final.with_name(_REPLACED + final.name)
    shutil.rmtree(replaced, ignore_errors=True)
    final.rename(replaced)
    staging.rename(final)
    shutil.rmtree(replaced)
