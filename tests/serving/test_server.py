import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests


@pytest.mark.slow
@pytest.mark.parametrize("way", ["hang", "die"])
def test_a_dead_engine_ends_the_process_and_everybody_is_told(model_folder, way):
    script = Path(__file__).parent / "hanging_server.py"
    process = subprocess.Popen([sys.executable, script, model_folder, way], stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        body = {"items": [{"text": "The sky"}]}
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda _: requests.post(f"{url}/v1/rewards", json=body, timeout=30), range(3)))
        assert {answer.status_code for answer in answers} == {503}
        assert {answer.json()["error"]["type"] for answer in answers} == {"dead"}
        assert process.wait(30) == 1
    finally:
        process.kill()


def test_what_a_client_that_left_had_queued_does_not_run(server):
    metrics = server.service.metrics.registry
    before = metrics.get_sample_value("plaudit_distinct_tokens_total")
    items = [{"text": f"{number} " + "The quick brown fox. " * 12} for number in range(4000)]
    with pytest.raises(requests.Timeout):
        requests.post(f"{server.url}/v1/rewards", json={"items": items}, timeout=(5, 1.0))
    limit = time.monotonic() + 30
    while server.service.in_flight:
        assert time.monotonic() < limit
        time.sleep(0.01)
    # The next request is answered behind the step that was running, and most of the 4,000 never run.
    assert requests.post(f"{server.url}/v1/rewards", json={"items": [{"text": "!"}]}, timeout=30).status_code == 200
    ran = metrics.get_sample_value("plaudit_distinct_tokens_total") - before
    assert ran < 0.9 * len(items) * len(server.reward_model.token_ids([items[0]["text"]])[0])
