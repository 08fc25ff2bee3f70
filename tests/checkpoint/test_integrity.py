import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from plaudit.checkpoint.integrity import (
    check_checkpoint,
    incomplete_checkpoints,
    last_complete_checkpoint,
    mark_finished,
    mark_unfinished,
    remove_checkpoint,
    remove_incomplete_checkpoints,
)
from plaudit.errors import CheckpointError


@pytest.fixture
def run(tmp_path):
    """A run's folder with the checkpoints of steps 2, 4 and 10."""
    first = tmp_path / f"{PREFIX_CHECKPOINT_DIR}-2"
    first.mkdir()
    save_file({"weight": torch.zeros(50)}, first / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"state": torch.zeros(50)}, first / name)
    (first / TRAINER_STATE_NAME).write_text(json.dumps({"global_step": 2}))
    for step in (4, 10):
        shutil.copytree(first, tmp_path / f"{PREFIX_CHECKPOINT_DIR}-{step}")
    return tmp_path


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def names(folder):
    return {path.name for path in folder.iterdir()}


# Complete or not: the marker


def test_the_last_complete_checkpoint_is_the_newest_with_its_marker(run):
    assert last_complete_checkpoint(run) == f"{run}/checkpoint-10"
    for step in (4, 10):
        mark_unfinished(run / f"checkpoint-{step}")
    (run / "checkpoint-10" / TRAINER_STATE_NAME).unlink()
    assert last_complete_checkpoint(str(run)) == f"{run}/checkpoint-4"
    halve(run / "checkpoint-4" / TRAINER_STATE_NAME)  # killed while the marker itself was written
    assert last_complete_checkpoint(run) == f"{run}/checkpoint-2"
    assert incomplete_checkpoints(run) == [run / "checkpoint-4", run / "checkpoint-10"]


def test_a_folder_without_checkpoints_has_no_last_one(tmp_path):
    (tmp_path / "checkpoint-best").mkdir()
    for folder in (tmp_path, tmp_path / "missing"):
        assert last_complete_checkpoint(folder) is None
        assert incomplete_checkpoints(folder) == []


def test_incomplete_checkpoints_are_removed_and_nothing_else(run, caplog):
    (run / "checkpoint-4" / TRAINER_STATE_NAME).unlink()  # by its owner, to save space
    (run / "checkpoint-10" / TRAINER_STATE_NAME).unlink()
    mark_unfinished(run / "checkpoint-10")
    mark_unfinished(run / "checkpoint-2")
    mark_finished(run / "checkpoint-2")
    (run / "checkpoint-best").mkdir()  # no name of transformers
    (run / "checkpoint-11").write_text("a file")
    with caplog.at_level(logging.INFO, logger="plaudit"):
        remove_incomplete_checkpoints(run)
    assert names(run) == {"checkpoint-2", "checkpoint-4", "checkpoint-best", "checkpoint-11"}
    assert f"removing '{run}/checkpoint-10'" in caplog.text


def test_a_checkpoint_being_removed_loses_its_marker_first(run, monkeypatch):
    monkeypatch.setattr(shutil, "rmtree", lambda path: None)  # killed here
    remove_checkpoint(run / "checkpoint-4")
    assert incomplete_checkpoints(run) == [run / "checkpoint-4"]
    monkeypatch.undo()
    for _ in range(2):
        remove_checkpoint(run / "checkpoint-4")
        assert names(run) == {"checkpoint-2", "checkpoint-10"}


# Whole or not: every file

FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", TRAINER_STATE_NAME]


@pytest.mark.parametrize("damage", [halve, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_an_error_that_names_it_and_the_checkpoint_before(run, name, damage):
    damage(run / "checkpoint-10" / name)
    with pytest.raises(CheckpointError) as raised:
        check_checkpoint(run / "checkpoint-10")
    message = str(raised.value)
    assert f"the checkpoint '{run}/checkpoint-10' is not whole: " in message
    assert name.split(".")[0] in message or "no weights" in message
    assert f"Resume from '{run}/checkpoint-4'" in message
    check_checkpoint(str(run / "checkpoint-4"))


def test_the_checkpoint_before_is_itself_whole(run):
    (run / "checkpoint-10" / TRAINER_STATE_NAME).unlink()
    halve(run / "checkpoint-4" / "optimizer.pt")
    with pytest.raises(CheckpointError, match=f"Resume from '{run}/checkpoint-2'"):
        check_checkpoint(run / "checkpoint-10")
    with pytest.raises(CheckpointError, match=f"Resume from '{run}/checkpoint-2'"):
        check_checkpoint(run / "checkpoint-4")
    halve(run / "checkpoint-2" / "model.safetensors")
    with pytest.raises(CheckpointError, match="There is no whole one before it"):
        check_checkpoint(run / "checkpoint-4")


def test_a_shard_that_the_index_names_must_be_there(run):
    index = run / "checkpoint-4" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(CheckpointError, match="names model-00002-of-00002.safetensors, which is missing"):
        check_checkpoint(run / "checkpoint-4")


def test_a_checkpoint_of_the_model_alone_is_whole(run):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (run / "checkpoint-4" / name).unlink()
    check_checkpoint(run / "checkpoint-4")


def test_an_empty_folder_is_no_checkpoint(run):
    (run / "checkpoint-11").mkdir()
    with pytest.raises(CheckpointError, match="trainer_state.json, which is written last, is missing"):
        check_checkpoint(run / "checkpoint-11")


def test_a_checkpoint_of_several_processes_is_whole(run):
    random_state = run / "checkpoint-4" / "rng_state.pth"
    for rank in (8, 9):  # a node with a disk of its own holds its own
        shutil.copy(random_state, random_state.with_name(f"rng_state_{rank}.pth"))
    random_state.unlink()
    check_checkpoint(run / "checkpoint-4")
