"""Whether a checkpoint can be resumed from: cheap looks that find what a broken copy or a power cut leaves."""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import sort_checkpoints

from plaudit.errors import CheckpointError

__all__ = ["check_intact", "has_checkpoint"]

_WEIGHTS = ("*.safetensors", "pytorch_model*", "global_step*")
_STATE = ("optimizer", "scheduler", "rng_state")


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run's folder holds a checkpoint, if only under the name a killed save has left it."""
    return any(
        path.is_dir() for pattern in ("checkpoint-*", "_replaced-checkpoint-*") for path in run_dir.glob(pattern)
    )


def check_intact(checkpoint: Path) -> None:
    """Refuse to resume from a checkpoint of which a part is missing, empty or cut short.

    Raises:
        CheckpointError: It names the file, and the checkpoint before.
    """
    problem = _problem(checkpoint)
    if problem is None:
        return
    others = sort_checkpoints(str(checkpoint.absolute().parent))
    earlier = [Path(other) for other in others if _step(Path(other)) < _step(checkpoint)]
    good = next((other for other in reversed(earlier) if _problem(other) is None), None)
    advice = f"Resume from '{good}', the newest before it that is." if good else "There is no whole one before it."
    raise CheckpointError(f"the checkpoint '{checkpoint}' is not whole: {problem}. {advice}")


def _problem(checkpoint: Path) -> str | None:
    if not (checkpoint / TRAINER_STATE_NAME).is_file():
        return f"{TRAINER_STATE_NAME} is missing"
    for path in sorted(checkpoint.rglob("*")):
        fault = _fault(path) if path.is_file() else None
        if fault is not None:
            return f"{path.relative_to(checkpoint)} {fault}"
    if not any(path for pattern in _WEIGHTS for path in checkpoint.glob(pattern)):
        return "it has no weights"
    there = {part: any(checkpoint.glob(f"{part}*")) for part in _STATE}
    # None of them: `save_only_model`. DeepSpeed has a folder of its own for them.
    if any(there.values()) and not all(there.values()) and not any(checkpoint.glob("global_step*")):
        return f"there is no {next(part for part in _STATE if not there[part])} file beside the other two of {_STATE}"
    return None


def _fault(path: Path) -> str | None:
    """What is wrong with a file, from its head or its tail alone."""
    if path.suffix == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # also of no UTF-8
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


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else 0
