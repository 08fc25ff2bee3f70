"""Saving so that no half-written folder ever stands where a good one did, whatever ends the process."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from plaudit.checkpoint.disk_full import room_error

__all__ = ["recover", "remove_folder", "staged_folder"]

# transformers takes "checkpoint-N" for a checkpoint, and uploads to the hub what does not begin with "_".
_STAGING, _REPLACED, _REMOVED = "_saving-", "_replaced-", "_removed-"
# Files for a folder that stays: being written, whole, and on their way into it.
_WRITING, _WHOLE, _MOVING = f"{_STAGING}model", "_saved-model", "_moving-model"
# What another kind of model may have left in an output folder; a loader would take it for this one's.
_MODEL_FILES = ("adapter_*", "config.json", "model*.safetensors*", "pytorch_model*")


@contextmanager
def staged_folder(
    final: Path, *, keep_others: bool, writes: bool, barrier: Callable[[], None], first_of_node: bool = True
) -> Iterator[Path]:
    """Write a folder beside its place, and put it there when it is whole.

    All processes enter, and each may write files into the folder that is yielded. When all have left it, it is renamed.
    If writing fails or is killed, what stood there before still does. A kill between two renames leaves both folders
    whole under other names, and `recover` ends what was begun; so does the next save to the same place.

    Args:
        final: Where the files shall be.
        keep_others: Whether `final` may hold other things that stay (an output folder with checkpoints in it). Then
            the files are renamed into it one by one; otherwise the whole folder is swapped.
        writes: Whether this process makes the folder and renames it; one does.
        barrier: Waits for all processes.
        first_of_node: Whether this process does the same on its node, if that has a file system of its own.

    Yields:
        The folder to write into.

    Raises:
        CheckpointError: The disk is full.
    """
    final = final.absolute()
    # A folder that stays may be a mount point: what is renamed into it must already lie on its file system.
    inside = keep_others and final.is_dir()
    staging = final / _WRITING if inside else final.with_name(_STAGING + final.name)
    barrier()  # all have looked before anyone writes
    if writes:
        _end_move(final)
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
            _flush(staging)
            _move_files(staging, final) if inside else _swap(staging, final)
    except BaseException as error:
        full = room_error(error, staging, final) if isinstance(error, Exception) else None
        if writes:
            shutil.rmtree(staging, ignore_errors=True)
        if full is not None:
            raise full from error
        raise
    barrier()


def recover(folder: Path) -> None:
    """End what a killed process had begun in a run's folder, and take away what it left half-written.

    Call it when a run starts, from one process, before any of them writes there.
    """
    folder = folder.absolute()
    shutil.rmtree(folder.with_name(_STAGING + folder.name), ignore_errors=True)
    if not folder.is_dir():
        return
    _end_move(folder)
    for replaced in folder.glob(f"{_REPLACED}*"):
        final = folder / replaced.name.removeprefix(_REPLACED)
        if final.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(final)
    for leftover in (*folder.glob(f"{_STAGING}*"), *folder.glob(f"{_REMOVED}*")):
        shutil.rmtree(leftover)


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there, so that it is either whole or gone under its name."""
    removed = folder.with_name(_REMOVED + folder.name)
    shutil.rmtree(removed, ignore_errors=True)  # what a kill left of the last one
    if folder.exists():
        folder.rename(removed)
        shutil.rmtree(removed)


def _move_files(staging: Path, final: Path) -> None:
    staging.rename(final / _WHOLE)  # from here on a kill no longer undoes the save
    _end_move(final)


def _end_move(final: Path) -> None:
    """Take away what other files would contradict, then put the new ones in place; from wherever a kill left it."""
    whole, moving = final / _WHOLE, final / _MOVING
    if whole.is_dir():
        names = {path.name for path in whole.iterdir()}
        for stale in (path for pattern in _MODEL_FILES for path in final.glob(pattern)):
            if stale.name not in names:
                stale.unlink(missing_ok=True)
        whole.rename(moving)  # once some files have left it, nobody can tell any more what is stale
    if moving.is_dir():
        # The configuration last: a folder without one loads nowhere, so a first save is whole or not there.
        for path in sorted(moving.iterdir(), key=lambda path: (path.name.endswith("config.json"), path.name)):
            if path.is_dir():
                shutil.rmtree(final / path.name, ignore_errors=True)
            os.replace(path, final / path.name)
        moving.rmdir()
        _flush_entries(final)


def _swap(staging: Path, final: Path) -> None:
    if not final.exists():
        staging.rename(final)
        _flush_entries(final.parent)
        return
    replaced = final.with_name(_REPLACED + final.name)
    shutil.rmtree(replaced, ignore_errors=True)
    final.rename(replaced)
    staging.rename(final)
    _flush_entries(final.parent)  # before the old one goes
    shutil.rmtree(replaced)


def _flush(folder: Path) -> None:
    """Have the disk hold what was written: after a power cut a renamed folder may else hold empty files."""
    for path in (*folder.rglob("*"), folder):
        _flush_entries(path)


def _flush_entries(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
