"""`laplace.safetensors`: written, read, and refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from plaudit.checkpoint.constants_file import write_constants_file
from plaudit.checkpoint.laplace_file import LAPLACE_FILE, SavedLaplace
from plaudit.errors import CheckpointError, ConfigError
from plaudit.uncertainty import MemberUncertainty, PosteriorUncertainty


@pytest.fixture
def saved():
    draw = torch.Generator().manual_seed(0)
    factor, mean, head = (torch.randn(*shape, generator=draw) for shape in ((3, 3), (3,), (3,)))
    return SavedLaplace(factor, mean, head, PosteriorUncertainty(0.25, 1.5), 2.0, "7 comparisons of rows")


def test_what_was_written_is_read(saved, tmp_path):
    saved.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LAPLACE_FILE]
    read = SavedLaplace.read(tmp_path)
    assert all(torch.equal(getattr(read, name), getattr(saved, name)) for name in ("factor", "feature_mean", "head"))
    assert (read.constants, read.prior_precision) == (saved.constants, saved.prior_precision)
    assert read.measured_on == saved.measured_on


def test_a_folder_without_the_file_has_no_posterior(tmp_path):
    assert SavedLaplace.read(tmp_path) is None


@pytest.mark.parametrize("name", ["heads.safetensors", "ensemble.json"])
def test_an_ensemble_gets_no_posterior(saved, tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=f"is an ensemble .{name}."):
        saved.write(tmp_path)


def test_a_file_that_is_cut_short_is_named(saved, tmp_path):
    saved.write(tmp_path)
    path = tmp_path / LAPLACE_FILE
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"laplace.safetensors is not whole .*Run `plaudit laplace MODEL DATA`"):
        SavedLaplace.read(tmp_path)


def test_a_file_without_constants_or_of_two_sizes_is_refused(saved, tmp_path):
    saved.write(tmp_path)
    tensors = load_file(tmp_path / LAPLACE_FILE)
    save_file(tensors, tmp_path / LAPLACE_FILE)
    with pytest.raises(CheckpointError, match=r"laplace.safetensors: uncertainty: expected the constants of one of"):
        SavedLaplace.read(tmp_path)
    write_constants_file(tmp_path / LAPLACE_FILE, tensors | {"head": torch.zeros(4)}, PosteriorUncertainty(0.0, 1.0))
    with pytest.raises(CheckpointError, match=r"expected factor \[H, H\].*got .*'head': \[4\]"):
        SavedLaplace.read(tmp_path)
    write_constants_file(tmp_path / LAPLACE_FILE, tensors, MemberUncertainty((0.0,) * 2, (1.0,) * 2, 1.0))
    with pytest.raises(CheckpointError, match="expected the constants of a posterior, got MemberUncertainty"):
        SavedLaplace.read(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_head_is_told_from_another_in_any_precision(saved, dtype):
    exact = saved.head[None]
    assert saved.is_of_head(exact.to(dtype), dtype)
    assert not saved.is_of_head((exact * 1.02).to(dtype), dtype)
    assert not saved.is_of_head(torch.zeros(1, 4), dtype)


def test_in_float32_a_thousandth_tells_two_heads_apart(saved):
    assert not saved.is_of_head(saved.head[None] * 1.001, torch.float32)
