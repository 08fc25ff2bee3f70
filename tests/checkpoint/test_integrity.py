import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from plaudit.checkpoint.integrity import check_intact, has_checkpoint
from plaudit.errors import CheckpointError


@pytest.fixture
def run(tmp_path):
    """A run's folder with the checkpoints of steps 2, 4 and 10."""
    first = tmp_path / "checkpoint-2"
    first.mkdir()
    save_file({"weight": torch.zeros(50)}, first / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"state": torch.zeros(50)}, first / name)
    (first / "trainer_state.json").write_text(json.dumps({"global_step": 2}))
    for step in (4, 10):
        shutil.copytree(first, tmp_path / f"checkpoint-{step}")
    return tmp_path


FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [halve, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_with_a_damaged_file_is_an_error_that_names_it_and_the_one_before(run, name, damage):
    damage(run / "checkpoint-10" / name)
    with pytest.raises(CheckpointError) as raised:
        check_intact(run / "checkpoint-10")
    message = str(raised.value)
    assert f"the checkpoint '{run}/checkpoint-10' is not whole: " in message
    assert name.split(".")[0] in message or "no weights" in message
    assert f"Resume from '{run}/checkpoint-4'" in message
    check_intact(run / "checkpoint-4")


def test_the_one_before_is_itself_whole(run):
    (run / "checkpoint-10" / "trainer_state.json").unlink()
    halve(run / "checkpoint-4" / "optimizer.pt")
    with pytest.raises(CheckpointError, match=f"Resume from '{run}/checkpoint-2'"):
        check_intact(run / "checkpoint-10")
    with pytest.raises(CheckpointError, match=f"Resume from '{run}/checkpoint-2'"):
        check_intact(run / "checkpoint-4")
    halve(run / "checkpoint-2" / "model.safetensors")
    with pytest.raises(CheckpointError, match="There is no whole one before it"):
        check_intact(run / "checkpoint-4")


def test_a_shard_that_the_index_names_and_the_folder_lacks_is_missed(run):
    index = run / "checkpoint-4" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(CheckpointError, match="names model-00002-of-00002.safetensors, which is missing"):
        check_intact(run / "checkpoint-4")


def test_a_checkpoint_of_the_model_alone_is_whole(run):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (run / "checkpoint-4" / name).unlink()
    check_intact(run / "checkpoint-4")


def test_an_empty_folder_is_no_checkpoint(run):
    (run / "checkpoint-11").mkdir()
    with pytest.raises(CheckpointError, match="trainer_state.json is missing"):
        check_intact(run / "checkpoint-11")


def test_a_checkpoint_counts_under_the_name_that_a_killed_save_left(tmp_path):
    assert not has_checkpoint(tmp_path / "nowhere")
    (tmp_path / "_saving-checkpoint-3").mkdir()
    assert not has_checkpoint(tmp_path)
    (tmp_path / "_replaced-checkpoint-3").mkdir()
    assert has_checkpoint(tmp_path)
