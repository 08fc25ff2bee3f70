"""Two local replicas on Ray Serve give the rewards of one model, and the responses of a prompt meet on one of them.

Ray lies in a folder of its own, which `make test` installs and names in PLAUDIT_RAY: only the process launched here
sees it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plaudit import RewardModel

SCRIPT = Path(__file__).with_name("ray_serving.py")
FOLDER = os.environ.get("PLAUDIT_RAY")
OPENING = "<|im_start|>assistant\n"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="PLAUDIT_RAY names no folder with Ray; `make test` does"),
]


@pytest.fixture
def folder(make_model, tokenizer, tmp_path):
    """A model whose chat template opens responses, and which begins each sequence with BOS as all texts do here."""
    tokenizer.chat_template += "{% if add_generation_prompt %}" + OPENING + "{% endif %}"
    for part in (make_model(pad_token_id=tokenizer.pad_token_id), tokenizer):
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def score_on_ray(folder, requests):
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), FOLDER]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", SCRIPT, folder], input="\n".join(map(json.dumps, requests)),
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert "OUTCOME" in done.stdout, f"it ended with {done.returncode}: {done.stdout} {done.stderr[-3000:]}"
    return json.loads(done.stdout.split("OUTCOME ")[1])


def test_two_replicas_score_as_one_model_and_siblings_meet(folder):
    prompts = [f"<|im_start|>user\n{n} dogs and {n} foxes, what is the sum?<|im_end|>\n{OPENING}" for n in range(8)]
    responses = [f"{n} of them, and the sky is blue.<|im_end|>\n" for n in range(4)]
    pairs = [[prompt, response] for prompt in prompts for response in responses]
    texts = ["".join(pair) for pair in pairs]
    reward_model = RewardModel.from_pretrained(folder, device="cpu")
    expected = reward_model.score(texts)

    too_long = ["dog", "fox " * 300]
    outcome = score_on_ray(folder, [texts, pairs, too_long, *([text] for text in texts[:8])])
    (rewards, distinct), (of_pairs, of_pairs_distinct), refused, *single = outcome["answers"]

    assert rewards == pytest.approx(expected.tolist(), abs=1e-5)
    assert of_pairs == pytest.approx(expected.tolist(), abs=1e-5)
    assert [each[0][0] for each in single] == pytest.approx(expected[:8].tolist(), abs=1e-5)
    assert refused == ["too_long", "items[1]"]
    assert outcome["max_length"] == reward_model.max_length
    assert outcome["queued"] == 0
    # A prompt of more than 30 tokens runs once for its four responses, wherever it runs.
    whole = sum(len(ids) for ids in reward_model.token_ids(texts))
    of_prompts = sum(len(ids) - 1 for ids in reward_model.token_ids(prompts))  # without EOS
    assert distinct <= whole - 3 * of_prompts
    assert of_pairs_distinct == distinct
