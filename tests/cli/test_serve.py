import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import requests
from click.testing import CliRunner

from plaudit.cli import cli
from plaudit.errors import ConfigError


def start(*arguments):
    """`plaudit serve` as a process of its own; returns it with the URL that it printed."""
    command = [sys.executable, "-m", "plaudit.cli", "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if " at http://" in line:
            return process, line.split(" at ")[1].split()[0]
    raise AssertionError("".join(lines))


def refused(*arguments):
    result = CliRunner().invoke(cli, ["serve", *map(str, arguments)])
    assert isinstance(result.exception, ConfigError)
    return str(result.exception)


def test_another_address_without_keys_is_refused(model_folder, monkeypatch):
    monkeypatch.delenv("PLAUDIT_API_KEYS", raising=False)
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        message = refused(model_folder, "--host", host)
        assert "--api_keys" in message
        assert "--insecure" in message


def test_reloading_needs_keys_and_a_root(model_folder, tmp_path):
    assert "--admin_keys" in refused(model_folder, "--reload_root", tmp_path)


def test_two_models_of_one_name_are_refused(tmp_path):
    for folder in ("one", "other"):
        (tmp_path / folder / "final").mkdir(parents=True)
    message = refused(tmp_path / "one" / "final", tmp_path / "other" / "final")
    assert "'final'" in message
    assert "NAME=MODEL" in message
    assert "'policy'" in refused("policy=a", "policy=b")


def test_a_folder_may_have_an_equals_sign_in_its_path(tmp_path):
    folder = tmp_path / "lr=1e-5" / "final"
    folder.mkdir(parents=True)
    result = CliRunner().invoke(cli, ["serve", str(folder)])
    assert str(folder) in str(result.exception)  # it holds no model


def test_a_key_file_that_cannot_be_read_is_named(model_folder, tmp_path):
    assert "missing.txt" in refused(model_folder, "--api_keys", tmp_path / "missing.txt")


def test_a_port_in_use_is_an_error(model_folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "--port" in refused(model_folder, "--port", taken.getsockname()[1])


@pytest.mark.slow
def test_sigterm_answers_what_was_accepted_and_refuses_the_rest(model_folder):
    process, url = start(model_folder, "--max_tokens_per_batch", 512)
    try:
        items = [{"text": f"{number} is the quick brown fox. " * 9} for number in range(1000)]
        answers = []
        asking = threading.Thread(
            target=lambda: answers.append(requests.post(f"{url}/v1/rewards", json={"items": items}, timeout=60))
        )
        asking.start()
        while not _queued(url):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        while requests.get(f"{url}/ready", timeout=5).status_code != 503:
            assert time.monotonic() - started < 5
        late = requests.post(f"{url}/v1/rewards", json={"items": items[:1]}, timeout=5)
        assert (late.status_code, late.json()["error"]["type"]) == (503, "draining")
        assert int(late.headers["Retry-After"]) > 0
        asking.join(60)
        assert answers[0].status_code == 200
        assert len(answers[0].json()["rewards"]) == len(items)
        assert process.wait(30) == 0
    finally:
        process.kill()


@pytest.mark.slow
def test_a_second_signal_ends_at_once_and_quietly(model_folder):
    process, url = start(model_folder, "--max_tokens_per_batch", 512)
    try:
        items = [{"text": f"{number} is the quick brown fox. " * 9} for number in range(5000)]

        def ask():
            with pytest.raises(requests.ConnectionError):
                requests.post(f"{url}/v1/rewards", json={"items": items}, timeout=60)

        asking = threading.Thread(target=ask)
        asking.start()
        while not _queued(url):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        while requests.get(f"{url}/ready", timeout=5).status_code != 503:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
        assert "Traceback" not in process.stdout.read()
        asking.join(10)
    finally:
        process.kill()


def test_a_name_stands_for_one_model_and_replicas_for_ray(model_folder):
    assert "different names" in refused(f"a={model_folder}", f"a={model_folder}")
    assert "--engine ray" in refused(model_folder, "--replicas", 3)


def _queued(url):
    text = requests.get(f"{url}/metrics", timeout=5).text
    return float(text.split("\nplaudit_queued_items ")[1].split("\n")[0])
