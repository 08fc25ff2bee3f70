"""The folder of a run: what a run resumes from, where it was in a stream, and what an error leaves behind."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from plaudit.checkpoint.atomic import recover, staged_folder
from plaudit.checkpoint.disk_full import explain_disk_full
from plaudit.checkpoint.integrity import (
    check_checkpoint,
    last_complete_checkpoint,
    mark_unfinished,
    remove_checkpoint,
    remove_incomplete_checkpoints,
)
from plaudit.checkpoint.metadata import read_metadata
from plaudit.errors import CheckpointError
from plaudit.training.distributed import is_sharded

if TYPE_CHECKING:
    from plaudit.training.config import RewardConfig
    from plaudit.training.trainer import RewardTrainer

__all__ = [
    "begin_checkpoint",
    "final_folder",
    "position_in_stream",
    "prepare_resumption",
    "without_incomplete_checkpoints",
]


def prepare_resumption(trainer: "RewardTrainer", resume_from: "str | Path | bool | None") -> "str | Path | bool | None":
    """Tidy the folder of a run, check the checkpoint to resume from, and take over what Plaudit has saved in it.

    Args:
        trainer: The trainer that is about to train.
        resume_from: A checkpoint, or `True` for the newest complete one of the output folder.

    Returns:
        The checkpoint as the Trainer takes it.

    Raises:
        CheckpointError: The checkpoint is not complete.
    """
    run_dir = Path(trainer.args.output_dir)
    named = resume_from if isinstance(resume_from, (str, Path)) and Path(resume_from).is_dir() else None
    if named is not None:
        check_checkpoint(Path(named))
    with trainer.accelerator.main_process_first():
        if trainer.is_local_process_zero():  # the first process of a node, where each node has a disk of its own
            recover(run_dir)
            remove_incomplete_checkpoints(run_dir)
    trainer.accelerator.wait_for_everyone()
    if resume_from is True:
        named = last_complete_checkpoint(run_dir)
        if named is not None:
            check_checkpoint(Path(named))
    if named is None:
        return resume_from  # nothing, or nothing that is there, which the Trainer refuses
    _check_random_state(Path(named), trainer.args)
    trainer.metadata.restore(Path(named))
    return str(named)


def _check_random_state(checkpoint: Path, args: "RewardConfig") -> None:
    """Refuse a checkpoint in which the random state of this process is missing.

    The first process may write the commit marker before the others have written their random states.

    Raises:
        CheckpointError: As many processes wrote the checkpoint as resume from it, and this one's state is not there.
    """
    wrote = read_metadata(checkpoint).get("training", {}).get("processes")
    own = checkpoint / f"rng_state_{args.process_index}.pth"
    if args.world_size > 1 and wrote == args.world_size and any(checkpoint.glob("rng_state_*")) and not own.is_file():
        raise CheckpointError(
            f"the checkpoint '{checkpoint}' is not whole: {own.name} is missing. Resume from another."
        )


def begin_checkpoint(trainer: "RewardTrainer", checkpoint: Path) -> None:
    """Make the folder of a checkpoint, in place of one of the same step that an earlier run has left.

    The marker of an earlier one would cover a mixture of both. All processes must call this.
    """
    if trainer.args.should_save:
        if trainer.signals.saved_step != trainer.state.global_step:
            remove_checkpoint(checkpoint)
        mark_unfinished(checkpoint)
    trainer.accelerator.wait_for_everyone()


def position_in_stream(checkpoint: Path, accumulation: int) -> tuple[int, int]:
    """Return the passes over a stream that a checkpoint has completed, and the batches of the pass it was in.

    Args:
        checkpoint: Its state has the epoch as passes, and a share of all batches that there could be.
        accumulation: Batches of an optimiser step.
    """
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    passes = math.ceil(state.epoch) - 1
    return passes, round((state.epoch - passes) * state.max_steps * accumulation)


@contextmanager
def without_incomplete_checkpoints(trainer: "RewardTrainer") -> Iterator[None]:
    """Remove a checkpoint that an error has left incomplete, and explain a full disk.

    Raises:
        CheckpointError: The disk is full.
    """
    run_dir = Path(trainer.args.output_dir)
    try:
        with explain_disk_full(run_dir):
            yield
    except Exception:
        if trainer.args.should_save:
            remove_incomplete_checkpoints(run_dir)
        raise


@contextmanager
def final_folder(trainer: "RewardTrainer", final: Path) -> Iterator[Path]:
    """Write the files of a final model into the folder that is yielded; they are put in place as a whole.

    All processes must enter for a sharded model; elsewhere the one that saves may enter alone.
    """
    together = is_sharded(trainer)
    with staged_folder(
        final,
        writes=trainer.args.should_save,
        barrier=trainer.accelerator.wait_for_everyone if together else lambda: None,
    ) as folder:
        yield folder
