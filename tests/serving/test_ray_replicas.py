"""`plaudit serve --engine ray`: two replicas give the rewards of one model, and the responses of a prompt meet.

Ray lies in a folder of its own, which `make test` installs and names in PLAUDIT_RAY: only the process launched here
sees it.
"""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import requests

from plaudit import RewardModel

FOLDER = os.environ.get("PLAUDIT_RAY")
OPENING = "<|im_start|>assistant\n"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="PLAUDIT_RAY names no folder with Ray; `make test` does"),
]


@pytest.fixture
def folder(make_model, tokenizer, tmp_path):
    """A model whose chat template opens the response."""
    tokenizer.chat_template += "{% if add_generation_prompt %}" + OPENING + "{% endif %}"
    for part in (make_model(pad_token_id=tokenizer.pad_token_id), tokenizer):
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@contextmanager
def serving(folder, log):
    """The URL of two replicas on one local Ray, and the process that serves it."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), FOLDER]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    command = [
        sys.executable,
        "-m",
        "plaudit.cli",
        "serve",
        folder,
        "--port",
        "0",
        "--engine",
        "ray",
        "--device",
        "cpu",
    ]
    with (
        open(log, "w") as errors,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            printed = next((line for line in process.stdout if "Serving" in line), "")
            url = re.search(r"http://\S+", printed)
            assert url, f"it ended with {process.poll()}: {log.read_text()[-3000:]}"
            yield url[0], process
        finally:
            process.kill()


def test_two_replicas_score_as_one_model_and_siblings_meet(folder, tmp_path):
    prompts = [f"<|im_start|>user\n{n} dogs and {n} foxes, what is the sum?<|im_end|>\n{OPENING}" for n in range(8)]
    responses = [f"{n} of them, and the sky is blue.<|im_end|>\n" for n in range(4)]
    pairs = [{"prompt": prompt, "response": response} for prompt in prompts for response in responses]
    texts = [{"text": pair["prompt"] + pair["response"]} for pair in pairs]
    reward_model = RewardModel.from_pretrained(folder, device="cpu")
    expected = reward_model.score([item["text"] for item in texts])
    # A prompt runs once for its four responses, on whichever replica.
    whole = sum(len(ids) for ids in reward_model.token_ids([item["text"] for item in texts]))
    shared = 3 * sum(len(ids) - 1 for ids in reward_model.token_ids(prompts))  # without EOS

    with serving(folder, tmp_path / "log") as (url, process):
        for items in (pairs, texts):
            answer = requests.post(f"{url}/v1/rewards", json={"items": items}, timeout=60).json()
            assert answer["rewards"] == pytest.approx(expected.tolist(), abs=1e-5)
            assert answer["usage"] == {"tokens": whole, "distinct_tokens": pytest.approx(whole - shared, abs=100)}
        rewards = requests.post(f"{url}/v1/rewards", json={"items": texts[9:10]}, timeout=60).json()["rewards"]
        assert rewards == pytest.approx(expected[9:10].tolist(), abs=1e-5)
        refused = requests.post(f"{url}/v1/rewards", json={"items": [texts[0], {"text": "fox " * 300}]}, timeout=60)
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "items[1]")
        assert requests.get(f"{url}/health", timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
