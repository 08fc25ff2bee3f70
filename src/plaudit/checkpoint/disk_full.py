"""One error for a full disk, whichever library failed to write."""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plaudit.checkpoint.integrity import incomplete_checkpoints, last_complete_checkpoint
from plaudit.errors import CheckpointError, PlauditError

__all__ = ["explain_disk_full", "is_disk_full"]

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# torch's writer of archives does not give the cause; safetensors gives the error number in its text.
_TORCH_WRITER = re.compile(r"inline_container\.cc|PytorchStreamWriter failed writing")
_ERROR_NUMBER = re.compile(r"os error (\d+)")


@contextmanager
def explain_disk_full(target: Path, advice: str | None = None) -> Iterator[None]:
    """Turn the errors that libraries raise on a full disk into one that names the remedy; let others pass.

    A quota, or a limit on the size of files, counts as a full disk.

    Args:
        target: The file, the checkpoint or the run's folder that is being written.
        advice: How to go on; by default, to make room and resume from the last complete checkpoint, if there is one.

    Raises:
        CheckpointError: The disk is full. The message says how much is free, and how to go on.
    """
    try:
        yield
    except PlauditError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        target = target.absolute()
        run_dir = target.parent if target.name.startswith("checkpoint-") else target
        written = [target, *incomplete_checkpoints(run_dir)][-1]  # in a run's folder, the checkpoint being written
        free = shutil.disk_usage(next(path for path in (target, *target.parents) if path.exists())).free
        raise CheckpointError(
            f"'{written}' could not be written: {error}. {_format_size(free)} are free on that disk; a quota, or a "
            f"limit on the size of files, may leave less. {advice or _advice(last_complete_checkpoint(run_dir))}"
        ) from error


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an exception, or one that it was raised from, is a library's error for a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return True
        number = _ERROR_NUMBER.search(str(error))
        if number is not None and int(number[1]) in _NO_SPACE:
            return True
        if isinstance(error, RuntimeError) and _TORCH_WRITER.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _advice(last: str | None) -> str:
    if last is None:
        return "Make room and start again."
    size = sum(path.stat().st_size for path in Path(last).rglob("*") if path.is_file())
    return (
        f"'{last}' still stands, and takes {_format_size(size)}: make room for as much and resume from it. "
        "(`save_total_limit` keeps fewer checkpoints, `save_only_model` smaller ones.)"
    )


def _format_size(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
