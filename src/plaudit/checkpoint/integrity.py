"""Integrity of the checkpoints that transformers writes into a run's folder.

The Trainer writes `trainer_state.json` as the last file of a checkpoint: it is the commit marker. A checkpoint is
complete if the marker is there and can be read; whole if, besides, no file is missing or cut short, as after a broken
copy. While it is written it has a mark of Plaudit's, by which an incomplete one is told from a folder whose marker a
user has removed.
"""

import json
import logging
import re
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from plaudit.errors import CheckpointError

__all__ = [
    "check_checkpoint",
    "incomplete_checkpoints",
    "last_complete_checkpoint",
    "mark_finished",
    "mark_unfinished",
    "remove_checkpoint",
    "remove_incomplete_checkpoints",
]

logger = logging.getLogger(__name__)

# transformers' names, written out so that no command imports torch for them; a test compares them.
_MARKER = "trainer_state.json"
_UNFINISHED = "_unfinished"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")

_WEIGHTS = ("*.safetensors", "pytorch_model*", "global_step*")
_STATE = ("optimizer", "scheduler", "rng_state")


def last_complete_checkpoint(run_dir: str | Path) -> str | None:
    """Return the path of the newest complete checkpoint in a run's folder, or `None`."""
    complete = [path for path in _checkpoints(Path(run_dir)) if _is_complete(path)]
    return str(complete[-1]) if complete else None


def incomplete_checkpoints(run_dir: str | Path) -> list[Path]:
    """Return the checkpoints in a run's folder that a save began and did not complete, in the order of their steps."""
    return [path for path in _checkpoints(Path(run_dir)) if (path / _UNFINISHED).exists() and not _is_complete(path)]


def mark_unfinished(checkpoint: Path) -> None:
    """Mark a checkpoint that is about to be written, which tells it from a folder of the user without the marker."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / _UNFINISHED).touch()


def mark_finished(checkpoint: Path) -> None:
    """Take the mark of `mark_unfinished` away, once the checkpoint is complete."""
    (checkpoint / _UNFINISHED).unlink(missing_ok=True)


def remove_incomplete_checkpoints(run_dir: str | Path) -> None:
    """Remove the checkpoints of a killed save, so that none is resumed from or counted in `save_total_limit`."""
    for path in incomplete_checkpoints(run_dir):
        logger.info("removing '%s': it was not written to the end", path)
        shutil.rmtree(path)


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint, the marker first, so that a kill never leaves a part that looks complete."""
    if checkpoint.exists():
        mark_unfinished(checkpoint)
        (checkpoint / _MARKER).unlink(missing_ok=True)
        shutil.rmtree(checkpoint)


def check_checkpoint(checkpoint: str | Path) -> None:
    """Check that a run can be resumed from a checkpoint, by the heads and tails of its files.

    The random states of several processes are not counted: each process looks for its own when it resumes.

    Raises:
        CheckpointError: The checkpoint is incomplete, or a file is missing, empty or cut short. The message names the
            file and the newest whole checkpoint before.
    """
    checkpoint = Path(checkpoint)
    problem = _problem(checkpoint)
    if problem is None:
        return
    earlier = [path for path in _checkpoints(checkpoint.absolute().parent) if _step(path) < _step(checkpoint)]
    whole = next((path for path in reversed(earlier) if _problem(path) is None), None)
    advice = f"Resume from '{whole}', the newest whole one before." if whole else "There is no whole one before it."
    raise CheckpointError(f"the checkpoint '{checkpoint}' is not whole: {problem}. {advice}")


def _checkpoints(run_dir: Path) -> list[Path]:
    """Return the checkpoints of a run in the order of their steps."""
    found = run_dir.glob("checkpoint-*") if run_dir.is_dir() else ()
    return sorted((path for path in found if _CHECKPOINT.fullmatch(path.name) and path.is_dir()), key=_step)


def _step(checkpoint: Path) -> int:
    name = _CHECKPOINT.fullmatch(checkpoint.name)
    return int(name[1]) if name else 0


def _is_complete(checkpoint: Path) -> bool:
    marker = checkpoint / _MARKER
    return marker.is_file() and _fault(marker) is None  # a kill may have cut the marker itself


def _problem(checkpoint: Path) -> str | None:
    """Return the reason why a run cannot be resumed from a checkpoint, or `None`."""
    if not (checkpoint / _MARKER).is_file():
        return f"{_MARKER}, which is written last, is missing"
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        fault = _fault(path)
        if fault is not None:
            return f"{path.relative_to(checkpoint)} {fault}"
    if not any(path for pattern in _WEIGHTS for path in checkpoint.glob(pattern)):
        return "it has no weights"
    has = {part: any(checkpoint.glob(f"{part}*")) for part in _STATE}
    # `save_only_model` leaves out all three; DeepSpeed has a folder of its own for them.
    if any(has.values()) and not all(has.values()) and not any(checkpoint.glob("global_step*")):
        return f"there is no {next(part for part in _STATE if not has[part])} file beside the other two of {_STATE}"
    return None


def _fault(path: Path) -> str | None:
    """Return the damage of a file, from its head or its tail alone, or `None`."""
    if path.suffix == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # includes what is no UTF-8
            return "cannot be read as JSON"
        shards = set(content.get("weight_map", {}).values()) if path.name.endswith(".index.json") else set()
        missing = sorted(name for name in shards if not (path.parent / name).is_file())
        return f"names {missing[0]}, which is missing" if missing else None
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                return None
        except SafetensorError as error:
            return f"cannot be read ({error})"
    if path.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(path):
        return "is cut short"
    return None
