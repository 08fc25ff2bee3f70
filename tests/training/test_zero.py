"""DeepSpeed's ZeRO-2 and ZeRO-3 on two CPU processes do what one process does, from Plaudit's own configuration files.

DeepSpeed lies in a folder of its own, which `make test` installs and names in PLAUDIT_DEEPSPEED: only the processes
launched here see it. Each stage is launched once, for all its tests.
"""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from plaudit.models.adapters import base_model
from plaudit.models.member_heads import member_heads

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("sharded_processes.py")
TIMEOUT = 400  # seconds; it takes 20 on two idle cores
FOLDER = os.environ.get("PLAUDIT_DEEPSPEED")
_EXTREMES = ("min_", "max_")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="PLAUDIT_DEEPSPEED names no folder with DeepSpeed; `make test` does"),
]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("plaudit_sharded_processes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=[2, 3])
def stage(request):
    return request.param


@pytest.fixture(scope="module")
def two(script, stage, tmp_path_factory):
    """The folder in which both processes have left what they computed."""
    folder = tmp_path_factory.mktemp(f"zero{stage}")
    environment = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    script.launch(folder, f"deepspeed_zero{stage}.yaml", f"zero{stage}", 2, extra_path=FOLDER, **environment)
    return folder


@pytest.fixture(scope="module")
def one(script, tmp_path_factory):
    """Trainers that have run the cases in one process, by name."""
    return script.train_alone(tmp_path_factory.mktemp("one"))


def seen(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def weights(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def plain_rewards(model, folder, rows):
    """As plain transformers gives them: right padding, one logit a row."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [row["prompt"] + row[side] for row in rows for side in ("chosen", "rejected")]
    batch = tokenizer([text + tokenizer.eos_token for text in texts], return_tensors="pt", padding=True)
    with torch.no_grad():
        return model.eval()(**batch).logits[:, 0].view(-1, 2).tolist()


@pytest.mark.parametrize("case", ["whole", "accumulated", "weighted", "adapter", "tokens", "members"])
def test_training_takes_the_steps_of_one_process(two, one, script, case):
    both, expected = seen(two, case)["losses"], script.losses_of(one[case])
    assert [entry["step"] for entry in both] == [entry["step"] for entry in expected]
    for entry, alone in zip(both, expected, strict=True):
        # The extremes are those of micro-batches, which by tokens are others.
        alone = {name: value for name, value in alone.items() if case != "tokens" or name[:4] not in _EXTREMES}
        assert {name: entry[name] for name in alone} == pytest.approx(alone, abs=1e-4, rel=1e-4)
    assert seen(two, case)["layout"] == "forest"


def test_the_model_is_wrapped_in_deepspeed_and_under_zero_3_in_parts(two, stage):
    for case in ("whole", "adapter"):
        noted = seen(two, case)
        assert (noted["engine"], noted["backend"]) == ("DeepSpeedEngine", "gloo")
        assert noted["partitioned"] == (noted["parameters"] if stage == 3 else 0)


def test_what_is_saved_is_the_model_of_one_process_with_its_head(two, one, script):
    saved = AutoModelForSequenceClassification.from_pretrained(two / "whole", num_labels=1)
    expected = weights(one["whole"].model)
    assert "score.weight" in expected
    for name, weight in weights(saved).items():
        # 2e-5: four float32 steps with gradients summed in another order, which AdamW's division magnifies
        torch.testing.assert_close(weight, expected[name], atol=2e-5, rtol=0, msg=name)
    rewards = plain_rewards(saved, two / "whole", script.ROWS)
    # 1e-5: float32, padded here and in forests there
    np.testing.assert_allclose(rewards, seen(two, "whole")["rewards"], atol=1e-5, rtol=0)


def test_a_saved_adapter_carries_its_head_and_scores_as_it_did(two, one, script):
    saved = AutoPeftModelForSequenceClassification.from_pretrained(two / "adapter", num_labels=1)
    expected = {name: weight for name, weight in weights(one["adapter"].model).items() if "lora" in name}
    assert len(expected) > 4
    for name, weight in expected.items():
        torch.testing.assert_close(weights(saved)[name], weight, atol=2e-5, rtol=0, msg=name)
    rewards = plain_rewards(saved, two / "adapter", script.ROWS)
    np.testing.assert_allclose(rewards, seen(two, "adapter")["rewards"], atol=1e-5, rtol=0)
    trained = weights(AutoModelForSequenceClassification.from_pretrained(two / "base"))["score.weight"]
    head = next(weight for name, weight in weights(saved).items() if "score.modules_to_save" in name)
    assert not torch.equal(head, trained)


@pytest.mark.parametrize("case", ["members", "adapter-members"])
def test_the_members_are_those_of_one_process_and_the_saved_head_is_their_mean(two, one, case):
    heads = load_file(two / case / "heads.safetensors")["weight"]
    members = member_heads(base_model(one[case].model)).weight.detach()
    torch.testing.assert_close(heads, members, atol=2e-5, rtol=0)
    file = "adapter_model.safetensors" if "adapter" in case else "model.safetensors"
    (head,) = (each for name, each in load_file(two / case / file).items() if name.endswith("score.weight"))
    torch.testing.assert_close(head[0], heads.mean(0))


FILES = {
    "whole": "model.safetensors",
    "adapter": "adapter_model.safetensors",
    "members": "heads.safetensors",
    "adapter-members": "heads.safetensors",
}


@pytest.mark.parametrize("case", FILES)
def test_a_checkpoint_resumes_bit_for_bit(two, case):
    file = FILES[case]
    assert (two / case / file).read_bytes() == (two / f"{case}-resumed" / file).read_bytes()
    assert (two / case / "checkpoint-2" / file).read_bytes() != (two / case / file).read_bytes()
    whole, resumed = (seen(two, name)["losses"] for name in (case, f"{case}-resumed"))
    assert [entry["loss"] for entry in whole] == [entry["loss"] for entry in resumed]


def test_an_evaluation_counts_every_row_once(two, one):
    alone = one["whole"].predict(one["whole"].eval_dataset).metrics
    names = ("test_num_tokens", "test_accuracy", "test_reward_ties", "test_loss", "test_margin", "test_min_reward")
    both = seen(two, "whole")["metrics"]
    assert {name: both[name] for name in names} == pytest.approx({name: alone[name] for name in names}, abs=1e-4)


@pytest.mark.parametrize("case", FILES)
def test_a_fresh_process_verifies_what_was_saved(two, case):
    assert seen(two, case)["verified"] == "verified"


def test_layouts_are_compared_once_the_weights_are_shared_out(two):
    assert seen(two, "doubted")["layout"] == "padded"


def test_an_evaluation_before_training_is_refused_or_the_training_after_it(two):
    first = seen(two, "evaluated-first")
    assert "eval_on_start" in first["error"]
    assert first["losses"] == []


def test_in_bf16_rewards_margins_and_weights_are_not_rounded(two):
    assert seen(two, "wide") == {"dtypes": ["torch.float32"] * 3, "rounded": [False] * 3}


def test_zero_3_is_refused_where_it_would_save_no_head(two, stage):
    expected = "stage3_gather_16bit_weights_on_model_save" if stage == 3 else ""
    assert expected in seen(two, "ungathered")["error"]
    assert bool(seen(two, "ungathered")["error"]) == (stage == 3)
