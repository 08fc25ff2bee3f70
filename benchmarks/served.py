"""What the benchmarks of the server share: servers as processes of their own, their requests, rewards and counters."""

import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from contextlib import contextmanager
from pathlib import Path

import psutil
from load_generator import Request
from prometheus_client.parser import text_string_to_metric_families

START_SECONDS = 120


class Server:
    """A server in a process of its own, and the address that it printed."""

    def __init__(self, command):
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.address, self.log, self.printed = None, deque(maxlen=200), threading.Event()
        threading.Thread(target=self._read_output, daemon=True).start()

    def _read_output(self):
        for line in self.process.stdout:
            self.log.append(line)
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            if found and self.address is None:
                self.address = found.group()
                self.printed.set()
        self.printed.set()

    def wait(self, path):
        """Wait until the path is answered."""
        limit = time.monotonic() + START_SECONDS
        self.printed.wait(START_SECONDS)
        while self.address and time.monotonic() < limit and self.process.poll() is None:
            try:
                self.get(path)
                return
            except urllib.error.HTTPError as error:
                if error.code == 404:  # it listens, and has no such route
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise SystemExit(f"the server did not start:\n{''.join(self.log)}")

    def get(self, path, key=None):
        """The body of a GET request."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with urllib.request.urlopen(urllib.request.Request(self.address + path, headers=headers), timeout=30) as answer:
            return answer.read().decode()

    def memory(self):
        """Bytes of resident memory, with those of its child processes."""
        process = psutil.Process(self.process.pid)
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))

    def counters(self, key=None):
        """The samples of /metrics: {(name, labels): value}."""
        families = text_string_to_metric_families(self.get("/metrics", key))
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }


@contextmanager
def running(command, ready):
    """Run a server until the end of the context."""
    server = Server(command)
    try:
        server.wait(ready)
        yield server
    finally:
        server.process.terminate()
        try:
            server.process.wait(60)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()


def plaudit_server(model, *options):
    """`plaudit serve` on a free port."""
    return running(["-m", "plaudit.cli", "serve", model, "--port", "0", *options], "/ready")


def fastapi_server(model):
    """The plain FastAPI server around a transformers pipeline."""
    return running([Path(__file__).with_name("fastapi_pipeline.py"), model], "/")


def rewards_request(conversations, **headers):
    """A request to Plaudit's native API for the rewards of conversations."""
    return Request("/v1/rewards", {"items": [{"messages": each} for each in conversations]}, headers)


def rewards_of(answers, requests):
    """The rewards of all answers, in the order of the requests, which must all have been answered."""
    rewards = [None] * requests
    for answer in answers:
        if answer.status != 200:
            raise SystemExit(f"expected status 200, got {answer.status}: {answer.body[:500]}")
        rewards[answer.index] = answer.json()["rewards"]
    if None in rewards:
        raise SystemExit(f"{rewards.count(None)} of {requests} requests were not answered")
    return [reward for found in rewards for reward in found]


def total(counters, name, **labels):
    """The sum of the samples of a name that have these labels."""
    return sum(
        value for (sample, found), value in counters.items() if sample == name and set(labels.items()) <= set(found)
    )
