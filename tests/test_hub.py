"""The hub that does not answer: asked once, and then only its cache is looked at."""

import logging
import shutil
import socket
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Barrier, Event, Thread

import pytest
from huggingface_hub import constants, is_offline_mode
from transformers import AutoTokenizer

from plaudit import RewardModel, audit
from plaudit.checkpoint.average import average_models
from plaudit.checkpoint.merge import merge_adapter
from plaudit.checkpoint.verify import verify
from plaudit.data.loading import load_source
from plaudit.data.special_tokens import set_chat_template
from plaudit.errors import PlauditError
from plaudit.hub import hub_or_cache, reads_hub
from plaudit.scoring.ensemble import save_ensemble


class Hub(BaseHTTPRequestHandler):
    """A hub that answers every request with the status of its server, or with nothing for the status 0."""

    def do_HEAD(self):
        self.server.requests += 1
        if self.server.status and self.server.requests > self.server.dropped:
            self.send_response(self.server.status)
            self.end_headers()

    def log_message(self, *_):
        pass


@contextmanager
def hub_of(status):
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.status, server.requests, server.dropped = status, 0, 0
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def online(monkeypatch):
    """The tests' own offline mode is left; returns a function that sets the address of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return lambda port: monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")


@pytest.fixture
def hub(online):
    """A hub that answers."""
    with hub_of(404) as server:
        online(server.server_port)
        yield server


@pytest.fixture
def dead_hub(online):
    """A hub that drops every request without an answer."""
    with hub_of(0) as server:
        online(server.server_port)
        yield server


# The question


@pytest.mark.parametrize("status", [200, 307, 401, 404, 405, 500, 503])
def test_a_hub_that_answers_whatever_it_says_may_be_asked_by_the_libraries(hub, status):
    hub.status = status
    with hub_or_cache("org/name"):
        assert not is_offline_mode()
    assert hub.requests == 1


def test_without_an_answer_only_the_cache_is_looked_at_until_the_context_ends(dead_hub, caplog):
    with caplog.at_level(logging.WARNING, logger="plaudit"), hub_or_cache("org/name"):
        assert is_offline_mode()
    assert not is_offline_mode()
    assert f"The hub cannot be reached at {constants.ENDPOINT} (" in caplog.text


def test_a_connection_that_is_dropped_once_is_no_dead_hub(hub):
    hub.dropped = 1
    with hub_or_cache("org/name"):
        assert not is_offline_mode()
    assert hub.requests == 2


def test_the_client_stays_offline_until_the_last_thread_has_left(dead_hub):
    both_are_in, first_has_left = Barrier(2, timeout=20), Event()

    def first():
        with hub_or_cache("org/one"):
            both_are_in.wait()
        first_has_left.set()

    thread = Thread(target=first)
    thread.start()
    with hub_or_cache("org/two"):
        both_are_in.wait()
        assert first_has_left.wait(20)
        assert is_offline_mode()
    thread.join()
    assert not is_offline_mode()


@pytest.mark.parametrize("name", ["~no-such-user/model", "a" * 300])
def test_a_name_that_no_file_can_have_is_left_to_the_libraries(hub, name):
    with hub_or_cache(name):
        assert not is_offline_mode()


def test_an_error_ends_the_context_too(dead_hub):
    with pytest.raises(ZeroDivisionError), hub_or_cache("org/name"):
        raise ZeroDivisionError
    assert not is_offline_mode()


def test_where_nothing_listens_there_is_no_answer(online):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        online(free.getsockname()[1])
    with hub_or_cache("org/name"):
        assert is_offline_mode()


def test_a_hub_that_accepts_and_never_answers_is_left_after_the_seconds_of_the_clients_own_variable(
    online, monkeypatch, caplog
):
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        online(silent.getsockname()[1])
        with hub_or_cache("org/name"):
            assert is_offline_mode()
    assert "no answer within 1 seconds; HF_HUB_ETAG_TIMEOUT sets another limit" in caplog.text


def test_several_names_and_calls_within_a_minute_ask_once(dead_hub):
    for _ in range(2):
        with hub_or_cache(["org/one", "org/two"]), hub_or_cache(("org/three",)):
            assert is_offline_mode()
    assert dead_hub.requests == 2  # the one question, which is repeated once


def test_neither_a_folder_nor_what_is_no_hub_id_asks(hub, tmp_path):
    (tmp_path / "rows.jsonl").touch()
    for name in (tmp_path, str(tmp_path / "rows.jsonl"), "/no/such/folder", "./none", "http://127.0.0.1:8000", None, 7):
        with hub_or_cache(name):
            assert not is_offline_mode()
    assert hub.requests == 0


def test_a_user_who_is_offline_stays_so_and_asks_nothing(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with hub_or_cache("org/name"):
        pass
    assert is_offline_mode()
    assert hub.requests == 0


def test_a_decorated_function_takes_its_name_by_place_or_by_keyword(dead_hub):
    @reads_hub("name")
    def look_up(kind, name=None):
        """Look up a name."""
        return kind, name, is_offline_mode()

    assert look_up("model", "org/name") == ("model", "org/name", True)
    assert look_up("model", name="org/name") == ("model", "org/name", True)
    assert look_up("model") == ("model", None, False)
    assert look_up.__doc__ == "Look up a name."


# Names that are not there


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


PAIR = {"prompt": "2 + 2?", "chosen": " 4", "rejected": " 5"}
ENTRIES = {
    "a reward model": lambda folder, _: RewardModel.from_pretrained("no/such"),
    "members": lambda folder, _: RewardModel.from_pretrained([folder, "no/such", "nor/this"]),
    "data": lambda folder, _: load_source("no/such"),
    "verification": lambda folder, _: verify("no/such"),
    "an adapter to merge": lambda folder, output: merge_adapter("no/such", output),
    "models to average": lambda folder, output: average_models([folder, "no/such"], output),
    "a chat template": lambda folder, _: set_chat_template(AutoTokenizer.from_pretrained(folder), "no/such"),
    "the tokenizer of an audit": lambda folder, _: audit([PAIR, PAIR], tokenizer="no/such"),
    "an ensemble": lambda folder, output: save_ensemble([folder, "no/such"], output, ["a text", "another"]),
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES.keys())
@pytest.mark.usefixtures("empty_cache")
def test_a_name_that_is_not_there_is_an_error_after_one_request(dead_hub, model_folder, tmp_path, entry):
    with pytest.raises(PlauditError, match="no/such"):
        entry(str(model_folder), tmp_path / "output")
    assert dead_hub.requests <= 2  # a minute may have ended


@pytest.mark.usefixtures("empty_cache")
def test_so_it_is_in_training(dead_hub, make_trainer):
    with pytest.raises(PlauditError, match="no/such"):
        make_trainer(model="no/such")
    assert dead_hub.requests <= 2


# Names in the cache


def test_a_model_in_the_hubs_cache_loads_after_one_request(dead_hub, model_folder, tmp_path):
    commit, repository = "c" * 40, tmp_path / "cache" / "models--org--name"
    shutil.copytree(model_folder, repository / "snapshots" / commit)
    Path(repository, "refs").mkdir()
    Path(repository, "refs", "main").write_text(commit, encoding="utf-8")
    found = RewardModel.from_pretrained("org/name", model_init_kwargs={"cache_dir": str(tmp_path / "cache")})
    here = RewardModel.from_pretrained(model_folder)
    assert found.score(["Is it?"]).tolist() == here.score(["Is it?"]).tolist()
    assert dead_hub.requests <= 2
