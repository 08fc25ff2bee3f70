"""Atomic writes: a file or a model's folder appears complete under its name, or not at all, whatever ends the process.

Checkpoints are not written here: transformers writes them, and `plaudit.checkpoint.integrity` tells the complete ones.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from plaudit.checkpoint.disk_full import explain_disk_full
from plaudit.errors import ConfigError

__all__ = ["new_folder", "recover", "remove_folder", "staged_file", "staged_folder", "write_atomically"]

# Folders inside the final one, in the order of a save. An upload to the hub leaves out names that begin with "_".
_WRITING, _COMPLETE, _MOVING = "_saving-model", "_saved-model", "_moving-model"
# Files that a model of another kind may have left: a loader would prefer them to the new ones.
_MODEL_FILES = (
    "adapter_*", "config.json", "model*.safetensors*", "pytorch_model*", "heads.safetensors", "laplace.safetensors",
    "ensemble.json",
)  # fmt: skip


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) so that it is either complete or as before."""
    with staged_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def staged_file(path: Path, staging: Path | None = None) -> Iterator[BinaryIO]:
    """Open a file for writing under another name; flush it to the disk and rename it to `path` at the end.

    If the block raises, the staged file is removed and `path` is left as it was.

    Args:
        path: The final name; a file that is there is replaced.
        staging: The name to write to, on the same file system; by default one beside `path` that begins with "_".
    """
    staging = staging or path.with_name(f"_{path.name}-{os.getpid()}")
    try:
        with open(staging, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a renamed file may be empty after a power cut
        os.replace(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise


@contextmanager
def staged_folder(final: Path, *, writes: bool = True, barrier: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Write the files of a model into a folder inside `final`; move them into `final` when all are complete.

    Every process enters and may write into the folder that is yielded. If the block raises or the process is killed in
    it, the model that was in `final` before is left as it was. A process killed later, while files are being moved,
    leaves a save that `recover`, or the next save to the same place, completes.

    Other files in `final`, such as checkpoints, stay; model files of another kind (a former adapter's) are removed.

    Args:
        final: The model's folder, made if it is missing.
        writes: Whether this process makes the folder and moves the files; exactly one does.
        barrier: Waits for all processes.

    Yields:
        The folder to write into.

    Raises:
        CheckpointError: The disk is full.
    """
    final = final.absolute()
    staging, is_new = final / _WRITING, not final.exists()
    if writes:
        recover(final)
        staging.mkdir(parents=True)
    barrier()
    try:
        with explain_disk_full(final):
            yield staging
            barrier()
            if writes:
                _flush_folder(staging)
                staging.rename(final / _COMPLETE)  # from here on a kill no longer undoes the save
                recover(final)
    except BaseException:
        if writes:
            shutil.rmtree(staging, ignore_errors=True)
            with suppress(OSError):  # it is not empty
                if is_new:
                    final.rmdir()
        raise
    barrier()


def new_folder(output: str | Path) -> Path:
    """Return the path of a folder that a model is to be written to.

    Raises:
        ConfigError: The folder is there and not empty, or is a file.
    """
    output = Path(output)
    recover(output)  # an earlier save may have been killed while it wrote
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"'{output}' is not empty. Name a new folder for the output.")
    return output


def recover(folder: Path) -> None:
    """Undo or complete the save of a model that a killed process began in `folder`.

    A run calls it once, from one process, before any process writes there. A folder without such a save, or none at
    all, is left as it is.
    """
    shutil.rmtree(folder / _WRITING, ignore_errors=True)
    complete, moving = folder / _COMPLETE, folder / _MOVING
    if complete.is_dir():
        names = {path.name for path in complete.iterdir()}
        for stale in (path for pattern in _MODEL_FILES for path in folder.glob(pattern)):
            if stale.name not in names:
                stale.unlink(missing_ok=True)
        complete.rename(moving)  # once files have left it, its names no longer tell which others are stale
    if moving.is_dir():
        # The configuration comes last: without one a folder loads nowhere, so a first save is complete or not there.
        for path in sorted(moving.iterdir(), key=lambda path: (path.name.endswith("config.json"), path.name)):
            if path.is_dir():
                shutil.rmtree(folder / path.name, ignore_errors=True)
            os.replace(path, folder / path.name)
        moving.rmdir()
        _flush(folder)


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there, so that under its name it is either complete or gone."""
    removed = folder.with_name(f"_removed-{folder.name}")
    shutil.rmtree(removed, ignore_errors=True)  # left by a removal that was killed
    if folder.exists():
        folder.rename(removed)
        shutil.rmtree(removed)


def _flush_folder(folder: Path) -> None:
    """Flush all files of a folder to the disk: after a power cut a renamed folder may otherwise hold empty ones."""
    for path in (*folder.rglob("*"), folder):
        _flush(path)


def _flush(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
