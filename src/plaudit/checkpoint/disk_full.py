"""A full disk: what a failed write says, in whatever words its library has for it."""

import errno
import re
import shutil
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from plaudit.errors import CheckpointError

__all__ = ["room_error"]

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# torch's file writer tells no cause; safetensors gives the number in its text.
_TORCH_WRITER = re.compile(r"inline_container\.cc|PytorchStreamWriter failed writing")
_ERROR_NUMBER = re.compile(r"os error (\d+)")


def room_error(error: BaseException, staging: Path, final: Path) -> CheckpointError | None:
    """What to say of a write that failed for want of room; `None` if that was not the cause.

    Args:
        error: What was raised.
        staging: Where the files were being written; they are still there, so that they can be measured.
        final: Where they should have gone.
    """
    if not _is_no_room(error):
        return None
    written = _size(staging)
    free = shutil.disk_usage(final.parent if not final.is_dir() else final).free
    run_dir = final.parent if final.name.startswith("checkpoint-") else final
    before = get_last_checkpoint(str(run_dir)) if run_dir.is_dir() else None
    needed = f"about {_in_words(_size(Path(before)))}, as {before} takes" if before else "more than that"
    kept = f"'{before}' still stands: make room and resume from it." if before else "Make room and start again."
    return CheckpointError(
        f"'{final}' could not be written: {error}. {_in_words(written)} of it had been written; it needs {needed}; "
        f"{_in_words(free + written)} are free on that disk, unless a quota says less. Nothing half-written is left. "
        f"{kept} (`save_total_limit` keeps fewer checkpoints, `save_only_model` smaller ones.)"
    )


def _is_no_room(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return True
        number = _ERROR_NUMBER.search(str(error))
        if number is not None and int(number[1]) in _NO_ROOM:
            return True
        if isinstance(error, RuntimeError) and _TORCH_WRITER.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _in_words(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
