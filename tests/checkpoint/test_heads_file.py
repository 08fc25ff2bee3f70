"""`heads.safetensors`: read as it was written, and refused with a reason where it is not whole."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from plaudit.checkpoint.constants_file import write_constants_file
from plaudit.checkpoint.heads_file import HEADS_FILE, SavedHeads
from plaudit.errors import CheckpointError
from plaudit.uncertainty import MemberUncertainty, PosteriorUncertainty


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


def without_weight(folder):
    write_constants_file(folder / HEADS_FILE, {"bias": torch.zeros(2)}, MemberUncertainty((0.0,) * 2, (1.0,) * 2, 1.0))


def other_counts(folder):
    constants = MemberUncertainty((0.0,) * 3, (1.0,) * 3, 1.0)
    write_constants_file(folder / HEADS_FILE, load_file(folder / HEADS_FILE), constants)


def other_biases(folder):
    constants = MemberUncertainty((0.0,) * 2, (1.0,) * 2, 1.0)
    write_constants_file(folder / HEADS_FILE, load_file(folder / HEADS_FILE) | {"bias": torch.zeros(3)}, constants)


def of_a_posterior(folder):
    write_constants_file(folder / HEADS_FILE, load_file(folder / HEADS_FILE), PosteriorUncertainty(0.0, 1.0))


def without_spread(folder):
    about = {"uncertainty": {"kind": "members", "centers": [0.0, 0.0], "scales": [1.0, 0.0], "reward_std": 1.0}}
    save_file(load_file(folder / HEADS_FILE), folder / HEADS_FILE, {"about": json.dumps(about)})


def cut_short(folder):
    path = folder / HEADS_FILE
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_constants, "expected the constants of one of members"),
        (without_weight, "weight is missing"),
        (other_counts, "expected K members in all of its tensors"),
        (other_biases, "expected K members in all of its tensors"),
        (of_a_posterior, "got .* and PosteriorUncertainty"),
        (without_spread, "expected standard deviations above 0, got 1.0, 0.0"),
        (cut_short, "is not whole"),
    ],
)
def test_a_damaged_file_is_refused_by_name(heads, tmp_path, damage, message):
    heads.write(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=f"heads.safetensors.*{message}"):
        SavedHeads.read(tmp_path)
