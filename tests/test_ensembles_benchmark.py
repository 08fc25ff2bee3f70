"""The short form of `make ensembles`: the benchmark of ensembles runs, and its figures hold what they must."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def choice(tmp_path_factory):
    output = tmp_path_factory.mktemp("ensembles") / "results.json"
    command = [sys.executable, BENCHMARKS / "ensembles.py", "--short", "--parts", "choice", "--workers", "1"]
    subprocess.run([*command, "--output", output], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    folder = output.parent
    subprocess.run([sys.executable, BENCHMARKS / "draw_ensembles.py", output, folder], check=True)
    assert (folder / "uncertainty_choice.png").stat().st_size > 1000
    return json.loads(output.read_text())["choice"]


def test_every_reward_is_compared_with_a_single_model_on_the_same_groups(choice):
    assert [row["reward"] for row in choice["primary"]] == [
        "heads, mean", "heads, mean-std", "heads, mean-var", "heads, min",
        "seeds, mean", "seeds, mean-std", "seeds, mean-var", "seeds, min", "Laplace, mean-std",
    ]  # fmt: skip
    for row in choice["primary"]:
        of_group = choice["by_group"]["both"]
        differences = np.subtract(of_group[row["reward"]], of_group[row["minus"]])[:, -1]
        assert row["mean"] == pytest.approx(differences.mean())
        assert row["low"] <= row["mean"] <= row["high"]
        assert row["p"] <= row["p_holm"] <= 1


@pytest.mark.parametrize("name", ["own", "far", "both"])
def test_the_true_reward_chooses_best_and_one_response_leaves_no_choice(choice, name):
    found = {reward: np.array(rows) for reward, rows in choice["by_group"][name].items()}
    for rows in found.values():
        assert (rows <= found["the true reward"] + 1e-9).all()
        np.testing.assert_allclose(rows[:, 0], found["random"][:, 0])
    assert (np.diff(found["the true reward"]) >= 0).all()


def test_a_weight_of_one_is_the_plain_mean_minus_std(choice):
    found = choice["by_group"]["both"]
    assert found["heads, mean-std"] == found["heads, mean-std, k=1"]
    assert found["seeds, mean-std"] == found["seeds, mean-std, k=1"]


def test_the_figures_of_errors_are_of_all_kinds_and_sets(choice):
    kinds = {(row["kind"], row["set"]) for row in choice["errors"]}
    assert kinds == {(kind, name) for kind in ("heads", "seeds", "Laplace") for name in ("own", "far")}
