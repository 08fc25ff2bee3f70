"""PPO with a Plaudit reward model, its value model initialised from it, in the last TRL that has a PPO trainer.

That TRL lies in a folder of its own, which `make test` installs and names in PLAUDIT_TRL_PPO.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, set_seed

FOLDER = os.environ.get("PLAUDIT_TRL_PPO")


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="PLAUDIT_TRL_PPO names no folder with TRL 1.12; `make test` does")
def test_ppo_trains_against_a_reward_model_and_a_value_model_made_of_it(make_trainer, tokenizer, tiny_config, tmp_path):
    trainer = make_trainer(max_steps=3, learning_rate=1e-2)
    trainer.train()
    trainer.save_model()
    set_seed(0)
    config = tiny_config(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    for part in (AutoModelForCausalLM.from_config(config), tokenizer):
        part.save_pretrained(tmp_path / "policy")
    result = subprocess.run(
        [sys.executable, Path(__file__).with_name("ppo.py"), trainer.args.output_dir, "policy", "ppo"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([FOLDER, os.environ.get("PYTHONPATH", "")])},
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["version"] == "1.12.0"
    # It reads the policy's ids: those of a text that ends in EOS, which is what the reward model was trained on.
    assert found["theirs"] == pytest.approx(found["ours"], abs=2e-6)
    assert max(found["ours"]) - min(found["ours"]) > 0.01
    assert found["values"] == pytest.approx(found["ours"], abs=2e-6)  # the value model begins as the reward model
    assert found["changed"] == [True, True, False]  # the policy and the value model train, the reward model does not
    assert len(found["scores"]) == 2
    assert all(math.isfinite(each) for each in found["scores"] + found["value_loss"])
