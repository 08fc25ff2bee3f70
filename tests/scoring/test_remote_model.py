"""A reward model behind a server: the rewards of one in this process, or an error that says what to do."""

import json
import logging
import multiprocessing
import pickle
import re

import numpy as np
import pytest
from stub_server import DROPPED, StubServer

from plaudit import RewardModel, evaluate
from plaudit.errors import ConfigError, DataError, ModelError, ServerError
from plaudit.scoring.remote_model import RemoteRewardModel

TEXTS = ["Is the sky blue? Yes.", "Is the sky blue? No, it is green!", "Two plus two? Four.", "Is it?", "Thank you."]
CHATS = [[{"role": "user", "content": f"Is it {n}?"}, {"role": "assistant", "content": "Yes, " * n}] for n in (1, 2, 3)]
TOOLS = [{"name": "add"}]


@pytest.fixture
def scorer(make_model, tokenizer):
    return RewardModel(make_model(), tokenizer, scale=(1.5, 0.25), temperature=2.0)


@pytest.fixture
def server(scorer, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("PLAUDIT_API_KEY", raising=False)
    with StubServer(scorer) as stub:
        yield stub


@pytest.fixture
def remote(server):
    return RemoteRewardModel(server.url)


@pytest.fixture
def waits(monkeypatch):
    """The seconds that a client waits between its tries, without waiting."""
    seconds = []
    monkeypatch.setattr("time.sleep", seconds.append)
    return seconds


def busy(retry_after=None, status=503):
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return status, headers, json.dumps({"error": {"type": "overloaded", "message": "the queue is full", "param": None}})


def close(rewards):
    return pytest.approx(rewards, abs=3e-6)  # float32, in other company


# The same rewards


def test_texts_and_conversations_get_the_rewards_of_the_model_in_the_order_given(remote, scorer):
    mixed = [TEXTS[0], CHATS[1], *TEXTS[1:], CHATS[0]]
    details = remote.score(mixed, return_details=True)
    expected = scorer.score(mixed, return_details=True)
    assert details.rewards.dtype == np.float32
    assert details.rewards == close(expected.rewards)
    assert details.tokens.tolist() == expected.tokens.tolist()
    assert details.truncated.tolist() == [False] * len(mixed)
    assert remote.score([]).shape == (0,)


def test_prompts_and_completions_are_joined_as_in_process(remote, scorer):
    prompts = ["Is the sky blue?", CHATS[0][:1], CHATS[1][:1]]
    completions = [" Yes.", "No.", [{"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}]]
    assert remote.score(prompts, completions) == close(scorer.score(prompts, completions))
    with pytest.raises(DataError, match="expected a completion for each prompt"):
        remote.score(prompts, completions[:2])


def test_options_of_the_chat_template_reach_it(remote, scorer):
    options = [{"tools": TOOLS}, {}, {"shout": True}]
    rewards = remote.score(CHATS, options=options)
    assert rewards == close(scorer.score(CHATS, options=options))
    assert rewards != close(scorer.score(CHATS))


def test_many_sequences_go_in_batches_with_siblings_together_and_come_back_in_order(server, scorer):
    remote = RemoteRewardModel(server.url, batch_items=4)
    texts = [f"Is the {prompt}? {answer}" for answer in ("Yes.", "No.", "Two.", "Four.") for prompt in ("sky", "dog")]
    assert remote.score(texts) == close(scorer.score(texts))
    batches = sorted(sorted(item["text"] for item in body["items"]) for body in server.bodies)
    assert batches == [sorted(texts[1::2]), sorted(texts[0::2])]
    assert server.connections <= 4


def test_a_batch_holds_no_more_items_than_the_server_takes(server, scorer):
    server.max_items = 2
    remote = RemoteRewardModel(server.url)
    assert remote.score(TEXTS) == close(scorer.score(TEXTS))
    assert sorted(len(body["items"]) for body in server.bodies) == [1, 2, 2]


def test_a_batch_holds_no_more_bytes_than_servers_take(remote, server):
    def zeros(body):
        columns = dict.fromkeys(("rewards", "tokens", "truncated"), [0] * len(body["items"]))
        return 200, columns | {"weight_version": "v1"}

    server.rewards, long = zeros, "Is it? " * 300_000
    remote.score([long + "Yes.", long + "No.", "Is it? No."])
    assert sorted(len(body["items"]) for body in server.bodies) == [1, 2]


def test_a_stream_is_read_in_chunks(remote, scorer):
    remote.chunk_size, read = 2, []

    def texts():
        for text in TEXTS:
            read.append(text)
            yield text

    stream = remote.stream(texts())
    first = next(stream)
    assert len(read) == 2
    assert [first, *stream] == close(scorer.score(TEXTS))


def test_ranks_and_probabilities_are_those_of_the_model(remote, scorer):
    prompt, completions = "Is the sky blue?", [" Yes.", " No, it is green!", " Yes."]
    for calibrated in (False, True):
        ours, theirs = (each.rank(prompt, completions, calibrated=calibrated) for each in (remote, scorer))
        assert [each.index for each in ours] == [each.index for each in theirs]
        assert [each.win_probability for each in ours] == close([each.win_probability for each in theirs])
    assert remote.best_of(prompt, completions) == scorer.best_of(prompt, completions)
    pair = prompt, *completions[:2]
    assert remote.preference_probability(*pair) == close(scorer.preference_probability(*pair))


def test_normalized_rewards_are_normalized_by_the_server(remote, scorer):
    assert remote.score(TEXTS, normalize=True) == close(scorer.score(TEXTS, normalize=True))
    scorer.scale = None
    with pytest.raises(ConfigError, match="normalize: the model was saved without"):
        remote.score(TEXTS, normalize=True)


def test_a_model_without_a_temperature_cannot_calibrate(remote, server):
    server.info["temperature"] = None
    with pytest.raises(ConfigError, match=f"calibrated: the model at {server.url} was saved without a temperature"):
        remote.rank("Is it?", [" Yes.", " No."], calibrated=True)


def test_what_is_too_long_is_truncated_and_counted_or_an_error(remote, server, scorer, caplog):
    scorer.max_length = 10
    texts = ["Is it?", "Is the sky blue? " * 9 + "Yes."]
    assert remote.score(texts) == close(scorer.score(texts))
    assert remote.truncated == 1
    assert "1 of 2 sequences had more tokens than the model takes and were truncated from the left" in caplog.text
    with pytest.raises(DataError, match=r"^row 1 has .* tokens, more than 10"):
        RemoteRewardModel(server.url, overlong="error").score(texts)


def test_the_model_is_described_by_its_server(remote, server, scorer):
    assert remote.name == server.url
    assert remote.fingerprint == "abc"
    described = remote.describe(TEXTS[0])
    assert described["model"] == "served"
    assert described["max_length"] == scorer.max_length
    assert json.loads(json.dumps(described)) == described


def test_an_evaluation_takes_it_as_any_scorer(remote, scorer, text_rows):
    there, here = evaluate(remote, text_rows), evaluate(scorer, text_rows)
    assert there.overall == pytest.approx(here.overall, nan_ok=True, abs=1e-4)
    assert there.scores.header["weight_version"] == "v1"


@pytest.mark.parametrize("trained_on", ["texts", "conversations"])
def test_the_other_form_than_that_of_training_is_warned_of_once(server, trained_on, caplog):
    server.info["trained_on"] = trained_on
    remote = RemoteRewardModel(server.url)
    mine, other = {"texts": (TEXTS[0], CHATS[0]), "conversations": (CHATS[0], TEXTS[0])}[trained_on]
    remote.score([mine, "<|user|>Is it?<|end|><|assistant|>Yes<|end|>"])  # a conversation that a template has rendered
    assert not caplog.text
    remote.score([mine, mine, other])
    remote.score([other])
    (record,) = caplog.records
    kind = "text" if trained_on == "conversations" else "conversation"
    assert f"row 2 is a {kind}, and the model was trained on {trained_on}" in record.getMessage()


# Items that the server refuses


def test_a_refused_item_is_called_by_the_callers_name_of_its_row(server, scorer):
    refusal = "{% if messages[0]['role'] == 'ghost' %}{{ raise_exception('no ghosts') }}{% endif %}"
    scorer.tokenizer.chat_template = refusal + scorer.tokenizer.chat_template
    ghost = [{"role": "ghost", "content": "Boo"}, {"role": "assistant", "content": "No."}]
    remote = RemoteRewardModel(server.url, batch_items=2)
    with pytest.raises(DataError, match=r"^row 3: the tokenizer's chat template refuses it"):
        remote.score([*CHATS, ghost])
    with pytest.raises(DataError, match=r"^the ghost: "):
        remote.score([*CHATS, ghost], names=["a", "b", "c", "the ghost"])


@pytest.mark.parametrize(
    ("sequence", "options", "said"),
    [
        (5, {}, "row 1: expected a string or a list of messages"),
        ("", {}, "row 1: expected some text"),
        ("half \ud800", {}, "row 1: expected text, got half of a character"),
        (CHATS[0], {"tools": [np.nan]}, "row 1: expected values that JSON can hold"),
        (CHATS[0], {"today": {1, 2}}, "row 1: expected values that JSON can hold"),
    ],
)
def test_what_cannot_be_sent_is_named_before_it_is(remote, server, sequence, options, said):
    with pytest.raises(DataError, match=re.escape(said)):
        remote.score(["Is it?", sequence], options=[{}, options])
    assert server.bodies == []


# Servers that are busy, broken or not there


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_asked_again_when_it_says(remote, server, scorer, waits, status):
    server.answers = [busy("3", status), busy("Thu, 01 Jan 1970 00:00:00 GMT", status), busy("soon", status)]
    assert remote.score(TEXTS) == close(scorer.score(TEXTS))
    assert waits[:2] == [3, 0]
    assert len(server.bodies) == 4
    assert all(body == server.bodies[0] for body in server.bodies)


def test_without_a_time_to_wait_the_waits_grow(remote, server, waits):
    server.answers = [busy()] * 4
    remote.score(TEXTS)
    assert waits[0] == 0
    assert 1 <= waits[1] < 2 <= waits[2] < 4 <= waits[3] < 5


def test_a_connection_that_drops_is_opened_again(remote, server, scorer, caplog):
    remote.score(TEXTS)
    server.answers = [DROPPED]
    assert remote.score(TEXTS) == close(scorer.score(TEXTS))
    assert server.connections == 2
    assert f"{server.url}: Remote end closed connection" in caplog.text


def test_a_server_that_stays_busy_is_an_error_with_its_address_and_its_reason(server, waits):
    server.answers = [busy("0")] * 9
    with pytest.raises(ServerError, match=f"{server.url} gives no rewards: 503, the queue is full"):
        RemoteRewardModel(server.url, retries=2).score(TEXTS)
    assert len(server.bodies) == 3


def test_no_wait_goes_beyond_the_timeout(server, waits):
    server.answers = [busy("30")] * 9
    with pytest.raises(ServerError, match="503"):
        RemoteRewardModel(server.url, timeout=20).score(TEXTS)
    assert waits == []
    assert {headers["X-Plaudit-Deadline"] for headers in server.headers} == {"19"}
    assert len(server.bodies) == 1


def test_a_server_that_is_not_there_is_an_error_that_says_what_to_do(scorer, waits):
    with StubServer(scorer) as gone:
        pass
    said = rf"cannot reach {gone.url} \(.*Connection refused, in 3 tries\). Is `plaudit serve` running there"
    with pytest.raises(ServerError, match=said) as raised:
        RemoteRewardModel(gone.url, retries=2).score(TEXTS)
    assert isinstance(raised.value, OSError)


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        ({"rewards": [1.0, float("nan")]}, ModelError, "row 0: expected a finite reward from http.*, got nan"),
        ({"rewards": [1e39, 1.0]}, ModelError, r"row 1: .* got 1e\+39"),
        ({"rewards": [1.0]}, ServerError, r"expected 2 numbers, got \[1.0\]"),
        ({"rewards": [1.0, None]}, ServerError, "expected 2 numbers"),
        ({"rewards": None}, ServerError, "expected 2 numbers, got None"),
        ({"tokens": []}, ServerError, "expected 2 numbers"),
    ],
)
def test_an_answer_without_a_finite_reward_for_each_item_is_an_error(remote, server, answer, error, said):
    content = {"rewards": [1.0, 2.0], "tokens": [3, 4], "truncated": [False, False], "weight_version": "v1"} | answer
    server.answers = [(200, {}, json.dumps(content))]
    with pytest.raises(error, match=said):
        remote.score(["Is the sky blue? Yes.", "Is the sky blue? No."])


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (
            (200, {}, "<html>Welcome</html>"),
            ServerError,
            "answers with something else than rewards. Is `plaudit serve`",
        ),
        ((200, {}, "[1.0]"), ServerError, "answers with something else than rewards"),
        ((404, {}, "<html>"), ServerError, "answers 404: Not Found. Is `plaudit serve` running there"),
        (
            (404, {}, '{"error": {"type": "unknown_route", "message": "no such route. GET /info describes it."}}'),
            ServerError,
            r"describes it\. Is `plaudit serve`",
        ),
        ((301, {"Location": "https://elsewhere"}, ""), ServerError, "answers 301"),
        ((500, {}, '{"error": {"type": "model_fault", "message": "out of memory"}}'), ModelError, "out of memory"),
        ((413, {}, '{"error": {"type": "body_too_large", "message": "too large"}}'), DataError, "too large"),
        ((403, {}, '{"error": {"type": "forbidden", "message": "no such host"}}'), ConfigError, "no such host"),
    ],
)
def test_other_answers_are_errors_at_once(remote, server, waits, answer, error, said):
    server.answers = [answer]
    with pytest.raises(error, match=said):
        remote.score(TEXTS)
    assert waits == []


def test_a_model_that_the_server_does_not_have_is_an_error(server, remote):
    server.others = [{"name": "second", "fingerprint": "def"}]
    other = RemoteRewardModel(server.url, model="other")
    for ask in (other.info, lambda: other.score(TEXTS)):
        with pytest.raises(ConfigError, match=f"expected one of those at {server.url}, served, second, got 'other'"):
            ask()
    assert server.bodies == []
    assert RemoteRewardModel(server.url, model="served").score(TEXTS).shape == (5,)
    assert RemoteRewardModel(server.url, model="second").fingerprint == "def"
    assert remote.fingerprint == "abc"
    server.others, server.info = [], None
    with pytest.raises(ServerError, match="names no models"):
        remote.info()


# Weights that change


def test_weights_that_change_during_a_call_bring_a_warning_that_names_both(server, caplog):
    remote = RemoteRewardModel(server.url, batch_items=3)
    server.versions = ["v1", "v2"]
    remote.score(TEXTS)
    assert caplog.text.count("changed during a call") == 1
    assert {remote.weight_version, *re.findall(r"version (v\d)", caplog.text)} == {"v1", "v2"}
    remote.score(TEXTS)
    assert caplog.text.count("changed during a call") == 1


def test_rewards_of_other_weights_are_refused_where_only_one_version_is_accepted(server):
    remote = RemoteRewardModel(server.url, only_version="v1")
    server.versions = ["v1", "v2"]
    remote.score(TEXTS)
    with pytest.raises(ConfigError, match=f"the weights at {server.url} were v1, and are v2 now"):
        remote.score(TEXTS)


@pytest.fixture
def ensemble_server(ensemble_folder, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with StubServer(RewardModel.from_pretrained(ensemble_folder)) as stub:
        yield stub


def test_columns_are_asked_for_by_calls_that_read_them_of_a_model_that_has_them(server, ensemble_server):
    for stub, expected in ((server, [False] * 4), (ensemble_server, [False, False, True, True])):
        remote = RemoteRewardModel(stub.url)
        remote.score(TEXTS)
        list(remote.stream(TEXTS))
        before = len(stub.headers)
        remote.rank("Is it?", [" Yes.", " No."])
        remote.score(TEXTS, return_details=True)
        assert len(stub.headers) - before == 4  # each call asks /info once
        assert [body.get("columns", False) for body in stub.bodies] == expected


def test_rewards_of_other_weights_than_those_of_the_constants_are_refused(ensemble_server):
    remote, call = RemoteRewardModel(ensemble_server.url), ("Is it?", [" Yes.", " No."])
    ensemble_server.versions = ["v2"]
    for ask in (lambda: remote.rank(*call), lambda: remote.score(TEXTS, aggregate="min")):
        with pytest.raises(ServerError, match="changed during a call, from v1 to v2, .* Call again"):
            ask()
    ensemble_server.info["weight_version"] = "v2"
    assert remote.rank(*call)[0].reward_std > 0


@pytest.mark.parametrize("columns", [None, [[1.0, 2.0]] * 2, "many"])
def test_an_answer_without_the_columns_of_the_uncertainty_is_an_error(ensemble_server, columns):
    content = {"rewards": [1.0, 2.0], "tokens": [3, 4], "truncated": [False, False], "weight_version": "v1"}
    ensemble_server.answers = [(200, {}, json.dumps(content | {"columns": columns}))]
    with pytest.raises(ServerError, match="expected 2 lists of 4 numbers as columns"):
        RemoteRewardModel(ensemble_server.url).score(["Is it?", "It is."], return_std=True)


# Keys, addresses and processes


def test_the_key_is_sent_and_never_shown(server, monkeypatch, caplog):
    server.key = "secret"
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ConfigError, match="refuses the key. Give `key=` or set PLAUDIT_API_KEY"):
        RemoteRewardModel(server.url).score(TEXTS)
    remote = RemoteRewardModel(server.url, key="secret\n")
    assert remote.score(TEXTS).shape == (5,)
    monkeypatch.setenv("PLAUDIT_API_KEY", "secret")
    from_environment = RemoteRewardModel(server.url)
    assert from_environment.score(TEXTS).shape == (5,)
    assert b"secret" not in pickle.dumps(from_environment)
    assert "secret" not in repr(remote) + caplog.text
    with pytest.raises(ConfigError, match="key: expected a key of visible ASCII characters") as raised:
        RemoteRewardModel(server.url, key="sécret")
    assert "cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host", "expected an address such as http://127.0.0.1:8000, got 'ftp://host'"),
        ("http://", "expected an address"),
        ("http://host:port", "expected an address"),
        ("http://host/?key=1", "expected an address"),
        ("http://me:secret/@host", "expected an address without a name and a password"),
        ("http://me:secret@host", "expected an address without a name and a password"),
    ],
)
def test_addresses_that_cannot_be_are_refused_at_once(url, said):
    with pytest.raises(ConfigError, match=re.escape(said)) as raised:
        RemoteRewardModel(url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"timeout": float("nan")}, {"retries": -1}, {"batch_items": 0}, {"overlong": "drop"}]
)
def test_options_that_cannot_be_are_refused_at_once(options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))}: expected"):
        RemoteRewardModel("http://127.0.0.1:1", **options)


def test_an_address_may_have_a_path(server):
    with pytest.raises(ServerError, match=f"{server.url}/behind/a/proxy answers 404"):
        RemoteRewardModel(f"{server.url}/behind/a/proxy/").score(TEXTS)


def test_connections_are_kept_and_each_process_opens_its_own(remote, server, scorer):
    for _ in range(3):
        remote.score(TEXTS)
    assert server.connections == 1
    again = pickle.loads(pickle.dumps(remote))
    assert again.score(TEXTS) == close(scorer.score(TEXTS))
    assert server.connections == 2
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(remote.score, (TEXTS,)) == close(scorer.score(TEXTS))
    assert server.connections == 3
