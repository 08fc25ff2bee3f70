import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import requests
from running_server import running
from safetensors.torch import load_file, save_file

from plaudit import RewardModel
from plaudit.serving.application import create_application
from plaudit.serving.authentication import ApiKeys
from plaudit.serving.served_model import ServedModel
from plaudit.serving.weight_swap import reload_route

OPERATOR = "an-operators-key-of-some-length"
TEXTS = ["Is the sky? Yes, the sky", "Is the dog? No, it is", "The quick brown fox jumps over the lazy dog. " * 3]


@pytest.fixture
def trained(tmp_path, make_trainer):
    """Two trained models below one root, each with its fingerprint, and one whose weights were changed afterwards."""
    root = tmp_path / "root"
    for name, steps in (("first", 1), ("second", 3)):
        trainer = make_trainer(max_steps=steps, learning_rate=1e-2)
        trainer.train()
        trainer.save_model(str(root / name))
    shutil.copytree(root / "second", root / "damaged")
    weights = load_file(root / "damaged" / "model.safetensors")
    weights["score.weight"] = -weights["score.weight"]
    save_file(weights, root / "damaged" / "model.safetensors", metadata={"format": "pt"})
    return root


@pytest.mark.slow
def test_each_answer_is_of_one_version_while_the_weights_change(trained, new_service, rendering_pool, tmp_path):
    service = new_service({"policy": RewardModel.from_pretrained(trained / "first")})

    def load(name, folder):
        return ServedModel(name, RewardModel.from_pretrained(folder), pool=rendering_pool)

    (tmp_path / "operators.txt").write_text(OPERATOR, encoding="utf-8")
    operators = ApiKeys.from_file(tmp_path / "operators.txt")
    route = reload_route(service, load, root=trained)
    expected = {}
    for name in ("first", "second"):
        model = RewardModel.from_pretrained(trained / name)
        expected[model.fingerprint] = model.score(TEXTS)
    first, second = expected
    answers, stop = [], threading.Event()

    with running(create_application(service, admin=[route], admin_keys=operators)) as url:

        def ask():
            is_last = False
            while not is_last:
                is_last = stop.is_set()  # the last request begins after the swap, so that both versions are seen
                answers.append(
                    requests.post(f"{url}/v1/rewards", json={"items": [{"text": t} for t in TEXTS]}, timeout=30)
                )

        def reload(path, key=OPERATOR):
            headers = {"Authorization": f"Bearer {key}"}
            return requests.post(f"{url}/admin/reload", json={"path": path}, headers=headers, timeout=120)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            assert reload("second", key="not-the-operators-key").status_code == 401
            assert reload("../").status_code == 403
            assert reload(str(Path(trained).parent)).status_code == 403
            assert reload("missing").status_code == 422
            refused = reload("damaged")
            assert (refused.status_code, "rewards" in refused.text) == (422, True)
            before = requests.post(f"{url}/v1/rewards", json={"items": [{"text": TEXTS[0]}]}, timeout=30).json()
            assert before["weight_version"] == first
            swapped = reload("second").json()
            assert (swapped["weight_version"], swapped["previous"]) == (second, first)
            after = requests.post(f"{url}/v1/rewards", json={"items": [{"text": TEXTS[0]}]}, timeout=30).json()
            assert after["weight_version"] == second
        finally:
            stop.set()
            asking.join()
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["weight_version"] for answer in answers} == {first, second}
    for answer in answers:
        version = answer.json()["weight_version"]
        assert answer.headers["X-Plaudit-Weight-Version"] == version
        np.testing.assert_allclose(answer.json()["rewards"], expected[version], atol=1e-5)
