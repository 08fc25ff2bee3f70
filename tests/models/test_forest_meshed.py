"""FSDP2 over two CPU processes, by hand: accelerate, asked for it on a CPU, gives DDP without a word."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

SCRIPT = Path(__file__).with_name("meshed.py")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meshed")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT, folder]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    return folder


def found(folder, rank):
    return json.loads((folder / f"{rank}.json").read_text())


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_holds_half_of_the_weights_and_gives_the_rewards_of_all(two, rank):
    seen = found(two, rank)
    assert 0.4 * seen["whole"] < seen["held"] < 0.6 * seen["whole"]
    assert seen["forest rewards"]
    assert seen["padded rewards"]


@pytest.mark.parametrize("layout", ["forest", "padded"])
def test_the_gradient_is_the_mean_over_both_processes(two, layout):
    # float32, added up in another order
    assert all(found(two, rank)[f"{layout} gradients"] < 2e-6 for rank in (0, 1))


def test_the_gathered_model_is_saved_to_the_same_bytes_head_included(two):
    sharded, plain = (two / name / "model.safetensors" for name in ("sharded", "plain"))
    assert sharded.read_bytes() == plain.read_bytes()
    model = AutoModelForSequenceClassification.from_pretrained(two / "sharded")
    assert torch.count_nonzero(model.score.weight) == model.score.weight.numel()


def test_rewards_stay_float32_unless_fsdp_is_told_to_round_outputs(two):
    """Which accelerate tells it, in bf16; the trainer takes that back."""
    assert (found(two, 0)["kept"], found(two, 0)["rounded"]) == ("torch.float32", "torch.bfloat16")
