"""Two processes on the CPU (gloo) do what one does. Both run `two_processes.py` once, for all tests of this file."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

SCRIPT = Path(__file__).with_name("two_processes.py")
TIMEOUT = 400  # seconds; it takes 15 on two idle cores, and many times that on busy ones

_EXTREMES = ("min_", "max_")

pytestmark = pytest.mark.slow


def load_script():
    spec = importlib.util.spec_from_file_location("plaudit_two_processes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return load_script()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder in which both processes have left what they computed."""
    folder = tmp_path_factory.mktemp("two")
    # torchrun holds the port that the processes meet at from the first moment, and ends one when the other fails.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT, folder]
    with (folder / "log").open("w") as log:
        launched = subprocess.Popen(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            code = launched.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            code = "none: it hangs"
            launched.terminate()  # it ends both processes
            launched.wait()
    assert code == 0, f"exit code {code}\n" + (folder / "log").read_text()[-6000:]
    return folder


def arrays(folder, name, rank=0):
    with np.load(folder / f"{name}.{rank}.npz") as file:
        return dict(file)


def logged(folder, name):
    return json.loads((folder / "metrics.json").read_text())[name]


@pytest.mark.parametrize("kind", ["table", "stream"])
@pytest.mark.parametrize("rows", [10, 11])
def test_an_evaluation_counts_every_row_once_and_in_order(two, script, tmp_path, rows, kind):
    one, metrics = script.evaluate(tmp_path, rows, kind == "stream")
    for rank in (0, 1):  # both processes know the whole
        both = arrays(two, f"{rows}-{kind}", rank)
        # 2e-6: float32, in batches padded to other lengths
        np.testing.assert_allclose(both["predictions"], one["predictions"], atol=2e-6, rtol=0)
        assert both["labels"].tolist() == one["labels"].tolist() == [0] * rows
    measured = {name: value for name, value in metrics.items() if not name.endswith(("runtime", "second", "time"))}
    assert len(measured) > 12
    counts = ("test_num_tokens", "test_accuracy", "test_reward_ties", "test_seen")
    assert {name: logged(two, f"{rows}-{kind}")[name] for name in counts} == {name: metrics[name] for name in counts}
    assert {name: logged(two, f"{rows}-{kind}")[name] for name in measured} == pytest.approx(measured, abs=2e-6)


def test_an_evaluation_counts_every_comparison_of_groups_once_and_in_order(two, script, tmp_path):
    one, metrics = script.evaluate_groups(tmp_path)
    assert len(one["labels"]) == 21
    for rank in (0, 1):
        both = arrays(two, "evaluated-groups", rank)
        np.testing.assert_allclose(both["predictions"], one["predictions"], atol=2e-6, rtol=0)
        assert both["labels"].tolist() == one["labels"].tolist()
    measured = {name: value for name, value in metrics.items() if not name.endswith(("runtime", "second", "time"))}
    assert {name: logged(two, "evaluated-groups")[name] for name in measured} == pytest.approx(measured, abs=2e-6)


@pytest.mark.parametrize("case", [*load_script().CASES, "accumulated"])
def test_training_takes_the_steps_of_one_process_with_the_doubled_batch(two, script, tmp_path, case):
    if case == "accumulated":
        _, one, log = script.accumulated(tmp_path, 1)
    else:
        # Of a budget there is nothing on one process but its batch.
        less = {"max_tokens_per_batch": None, "gradient_accumulation_steps": 2} if case == "tokens" else {}
        _, one, log = script.train(tmp_path, 1, **script.CASES[case] | less)
    first, second = (arrays(two, case, rank) for rank in (0, 1))
    assert one.keys() == first.keys()
    for name in one:
        np.testing.assert_array_equal(first[name], second[name])
        # 2e-5: four float32 steps with gradients summed in another order, which AdamW's division magnifies
        np.testing.assert_allclose(first[name], one[name], atol=2e-5, rtol=0, err_msg=name)
    both = logged(two, case)
    assert [entry["step"] for entry in both] == [entry["step"] for entry in log]
    for entry, expected in zip(both, log, strict=True):
        assert entry["num_tokens"] == expected["num_tokens"]
        # The extremes are those of micro-batches, which by tokens are others.
        expected = {name: value for name, value in expected.items() if case != "tokens" or name[:4] not in _EXTREMES}
        assert {name: entry[name] for name in expected} == pytest.approx(expected, abs=1e-4, rel=1e-4)


def test_the_saved_model_is_there_once_and_gives_the_rewards_of_the_run(two):
    saved = arrays(two, "saved")
    output = two / "saved"
    assert not list(two.rglob(".saving*")) + list(two.rglob(".replaced*"))
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert {path.name for path in (output / "checkpoint-4").iterdir()} > {
        "model.safetensors", "optimizer.pt", "rng_state_0.pth", "rng_state_1.pth", "README.md", "trainer_state.json",
    }  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(output, num_labels=1)
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), saved[name])
    assert (model.config.mean, model.config.std) == pytest.approx(
        (saved["rewards"].astype(float).mean(), saved["rewards"].astype(float).std()), rel=1e-6
    )
    np.testing.assert_array_equal(saved["rewards"], arrays(two, "saved", 1)["rewards"])


def test_two_processes_resume_bit_for_bit(two):
    whole, resumed = arrays(two, "saved"), arrays(two, "resumed")
    for name, weight in resumed.items():
        np.testing.assert_array_equal(weight, whole[name])


def test_two_processes_resume_by_tokens_in_the_second_epoch_bit_for_bit(two):
    for rank in (0, 1):
        whole, resumed = arrays(two, "by-tokens", rank), arrays(two, "by-tokens-resumed", rank)
        for name, weight in resumed.items():
            np.testing.assert_array_equal(weight, whole[name])
            np.testing.assert_array_equal(weight, arrays(two, "by-tokens", 1 - rank)[name])


@pytest.mark.parametrize("name", load_script().RESUMED)
def test_two_processes_resume_in_the_middle_of_the_second_epoch_bit_for_bit(two, name):
    for rank in (0, 1):
        whole, again = arrays(two, f"whole-{name}", rank), arrays(two, f"again-{name}", rank)
        assert whole
        for key, weight in again.items():
            np.testing.assert_array_equal(weight, whole[key])


def test_what_fails_on_one_process_stops_both(two):
    first, second = (json.loads((two / f"said.{rank}.json").read_text()) for rank in (0, 1))
    assert first[0] == second[0]  # rewards
    assert "step 1: a loss or a reward is not finite" in first[0]
    assert first[0].count("process 1, row ") == 2
    assert "process 0, row" not in first[0]


def test_batches_by_tokens_deal_every_row_to_one_process_in_each_epoch(two):
    first, second = (json.loads((two / f"plans.{rank}.json").read_text()) for rank in (0, 1))
    for epoch in (0, 1):
        assert len(first[epoch]) == len(second[epoch])
        assert sorted(row for batch in first[epoch] + second[epoch] for row in batch) == list(range(10))
    assert first[0] != first[1]


def test_the_first_process_decides_the_layout_of_all(two):
    for rank in (0, 1):
        assert json.loads((two / f"layouts.{rank}.json").read_text()) == ["padded", "forest"]
