"""The Trainer's own FSDP2, which takes a GPU: one process, launched from Plaudit's own configuration file.

On a CPU accelerate gives DDP without a word; there `tests/models/test_forest_meshed.py` shards by hand.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("sharded_processes.py")
TIMEOUT = 400

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("plaudit_sharded_processes_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.DEVICE["use_cpu"] = False
    return module


@pytest.fixture(scope="module")
def sharded(script, tmp_path_factory):
    """The folder in which the launched process has left what it computed."""
    folder = tmp_path_factory.mktemp("fsdp")
    script.launch(folder, "fsdp2.yaml", "fsdp", 1, CUDA_VISIBLE_DEVICES="0")
    return folder


@pytest.fixture(scope="module")
def unsharded(script, tmp_path_factory):
    """Trainers that have run the same cases on the same GPU without a wrapper, by name."""
    return script.train_alone(tmp_path_factory.mktemp("unsharded"))


def seen(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def weights(model):
    return {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("case", ["whole", "accumulated", "weighted", "adapter", "tokens", "full"])
def test_the_weights_are_sharded_and_the_steps_are_those_of_a_run_without_a_wrapper(sharded, unsharded, script, case):
    noted = seen(sharded, case)
    assert noted["kinds"] == ["DTensor"]
    assert noted["engine"].startswith("FSDP")
    assert noted["layout"] == "forest"
    alone = script.losses_of(unsharded["whole" if case == "full" else case])
    for name in ("loss", "accuracy", "margin", "num_tokens"):
        expected = pytest.approx([entry[name] for entry in alone], abs=1e-4, rel=1e-4)
        assert [entry[name] for entry in noted["losses"]] == expected, name


@pytest.mark.parametrize("case", ["whole", "full"])
def test_what_is_saved_is_the_whole_model_with_its_head(sharded, unsharded, case):
    expected = weights(unsharded["whole"].model)
    for folder in (sharded / case, sharded / case / "checkpoint-4"):
        saved = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
        assert "score.weight" in weights(saved)
        for name, weight in weights(saved).items():
            torch.testing.assert_close(weight, expected[name], atol=1e-4, rtol=0, msg=name)


def test_a_saved_adapter_carries_its_head(sharded, unsharded):
    saved = weights(AutoPeftModelForSequenceClassification.from_pretrained(sharded / "adapter", num_labels=1))
    expected = {name: weight for name, weight in weights(unsharded["adapter"].model).items() if "base" in name}
    for name, weight in expected.items():
        if "lora" in name or "modules_to_save" in name:
            torch.testing.assert_close(saved[name], weight, atol=1e-4, rtol=0, msg=name)


@pytest.mark.parametrize("case", ["whole", "adapter", "full"])
def test_a_checkpoint_resumes(sharded, case):
    whole, resumed = (seen(sharded, name)["losses"] for name in (case, f"{case}-resumed"))
    assert [entry["loss"] for entry in resumed] == pytest.approx([entry["loss"] for entry in whole], abs=1e-5)
    load = AutoPeftModelForSequenceClassification if case == "adapter" else AutoModelForSequenceClassification
    first, second = (weights(load.from_pretrained(sharded / name, num_labels=1)) for name in (case, f"{case}-resumed"))
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("case", ["whole", "adapter"])
def test_a_fresh_process_verifies_what_was_saved(sharded, case):
    assert seen(sharded, case)["verified"] == "verified"


def test_layouts_are_compared_once_the_weights_are_sharded(sharded):
    assert seen(sharded, "doubted")["layout"] == "padded"


def test_in_bf16_rewards_margins_and_weights_are_not_rounded(sharded):
    assert seen(sharded, "wide") == {"dtypes": ["torch.float32"] * 3, "rounded": [False] * 3}
