"""`heads.safetensors`: read as it was written, and refused with a reason where it is not whole."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from plaudit.checkpoint.heads_file import HEADS_FILE, SavedHeads
from plaudit.errors import CheckpointError
from plaudit.uncertainty import MemberUncertainty


@pytest.fixture
def heads():
    constants = MemberUncertainty((0.1, -2.0), (1.5, 1 / 3), reward_std=0.7)
    return SavedHeads(torch.randn(2, 8), None, constants, "evaluation")


def test_members_and_constants_are_read_as_they_were_written(heads, tmp_path):
    heads.write(tmp_path)
    read = SavedHeads.read(tmp_path)
    assert torch.equal(read.weight, heads.weight)
    assert (read.bias, read.constants, read.measured_on) == (None, heads.constants, "evaluation")
    first = (tmp_path / HEADS_FILE).read_bytes()
    heads.write(tmp_path)
    assert (tmp_path / HEADS_FILE).read_bytes() == first


def test_biases_are_kept(heads, tmp_path):
    SavedHeads(heads.weight, torch.tensor([1.0, 2.0]), heads.constants, "x").write(tmp_path)
    assert SavedHeads.read(tmp_path).bias.tolist() == [1.0, 2.0]


def test_a_folder_without_the_file_has_no_members(tmp_path):
    assert SavedHeads.read(tmp_path) is None


def without_constants(folder):
    save_file(load_file(folder / HEADS_FILE), folder / HEADS_FILE)


def without_centers(folder):
    tensors = load_file(folder / HEADS_FILE)
    save_file({name: tensors[name] for name in ("weight", "scale")}, folder / HEADS_FILE, {"about": "{}"})


def other_counts(folder):
    tensors = load_file(folder / HEADS_FILE)
    save_file(tensors | {"scale": torch.ones(3)}, folder / HEADS_FILE, {"about": '{"reward_std": 1.0}'})


def cut_short(folder):
    path = folder / HEADS_FILE
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_constants, "reward_std is missing"),
        (without_centers, "center is missing"),
        (other_counts, "two or more members in all of its tensors"),
        (cut_short, "is not whole"),
    ],
)
def test_a_damaged_file_is_refused_by_name(heads, tmp_path, damage, message):
    heads.write(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=f"heads.safetensors.*{message}"):
        SavedHeads.read(tmp_path)
