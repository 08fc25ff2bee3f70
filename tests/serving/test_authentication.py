import base64
import hashlib
import logging

import pytest
from starlette.datastructures import Headers

from plaudit.errors import ConfigError
from plaudit.serving.authentication import ApiKeys, presented_key

FIRST, SECOND = "first-key-of-the-test", "second-key-of-the-test"


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# for the trainer\n{FIRST}\n\n  {SECOND}  \n")
    path.chmod(0o600)
    return path


def test_every_key_of_the_file_opens_and_has_a_stable_short_name(key_file):
    keys = ApiKeys.from_file(key_file)
    assert keys.check(FIRST) == hashlib.sha256(FIRST.encode()).hexdigest()[:8]
    assert keys.check(SECOND) not in (None, keys.check(FIRST))


@pytest.mark.parametrize("wrong", ["", FIRST[:-1], FIRST + "x", FIRST.upper(), "# for the trainer", "\ud800"])
def test_another_key_does_not_open(key_file, wrong):
    assert ApiKeys.from_file(key_file).check(wrong) is None


def test_no_key_is_kept_in_memory(key_file):
    assert FIRST not in str(vars(ApiKeys.from_file(key_file)))


def test_keys_come_from_the_environment_too(monkeypatch):
    monkeypatch.delenv("PLAUDIT_API_KEYS", raising=False)
    assert ApiKeys.from_environment() is None
    monkeypatch.setenv("PLAUDIT_API_KEYS", f"{FIRST}, {SECOND},")
    keys = ApiKeys.from_environment()
    assert keys.check(FIRST)
    assert keys.check(SECOND)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("", "keys holds no API key"),
        ("# nothing\n", "keys holds no API key"),
        (f"{FIRST}\nshort-key\n", "keys, line 2: "),
        (f"two words {FIRST}\n", "keys, line 1: "),
        (f"{FIRST}é\n", "keys, line 1: "),
    ],
)
def test_a_file_that_cannot_work_is_refused_at_the_start_without_the_key(key_file, content, place):
    key_file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        ApiKeys.from_file(key_file)
    assert place in str(caught.value)
    assert "short-key" not in str(caught.value)
    assert FIRST not in str(caught.value)


def test_a_missing_file_is_refused_at_the_start(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        ApiKeys.from_file(tmp_path / "keys")


def test_a_file_in_another_encoding_is_refused(key_file):
    key_file.write_bytes(b"\xff" * 20)
    with pytest.raises(ConfigError, match="not UTF-8"):
        ApiKeys.from_file(key_file)


@pytest.mark.parametrize("value", ["", " , ", "short"])
def test_an_environment_that_cannot_work_is_refused(monkeypatch, value):
    monkeypatch.setenv("PLAUDIT_API_KEYS", value)
    with pytest.raises(ConfigError, match="PLAUDIT_API_KEYS"):
        ApiKeys.from_environment()


def test_a_file_that_all_users_can_read_is_warned_about(key_file, caplog):
    key_file.chmod(0o604)
    ApiKeys.from_file(key_file)
    assert "chmod 600" in caplog.text


def test_rewriting_the_file_changes_the_keys(key_file, caplog):
    keys = ApiKeys.from_file(key_file, check_seconds=0)
    assert keys.check(FIRST)
    caplog.set_level(logging.INFO, logger="plaudit")
    key_file.write_text(SECOND)
    assert keys.check(FIRST) is None
    assert keys.check(SECOND)
    assert "was rewritten: 1 API key is in force." in caplog.text
    key_file.write_text(f"{FIRST}\n{SECOND}")
    assert keys.check(FIRST)
    assert "was rewritten: 2 API keys are in force." in caplog.text


def test_the_file_is_not_read_at_every_request(key_file):
    keys = ApiKeys.from_file(key_file, check_seconds=3600)
    key_file.write_text(SECOND)
    assert keys.check(FIRST)


@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: path.write_text(""), lambda path: path.write_text("short")]
)
def test_the_old_keys_stay_where_the_new_file_is_damaged(key_file, caplog, damage):
    keys = ApiKeys.from_file(key_file, check_seconds=0)
    damage(key_file)
    assert keys.check(FIRST)
    assert keys.check(SECOND)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1, "the same problem is logged once"
    assert "stay in force" in errors[0].getMessage()
    key_file.write_text(SECOND)
    assert keys.check(FIRST) is None


# The header Authorization


def basic_header(text):
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize("value", [f"Bearer {FIRST}", f"bearer  {FIRST} ", f"BEARER {FIRST}"])
def test_a_bearer_key_is_read_in_any_case_of_the_scheme(value):
    assert presented_key(Headers({"Authorization": value}), basic=False) == FIRST


def test_the_password_of_http_basic_is_the_key_where_it_is_allowed():
    headers = Headers({"authorization": basic_header(f"anyone:{FIRST}")})
    assert presented_key(headers, basic=True) == FIRST
    assert presented_key(headers, basic=False) is None


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", FIRST, f"Token {FIRST}", "Basic", "Basic !", basic_header("a"), "Basic /w=="]
)
def test_other_headers_hold_no_key(value):
    assert presented_key(Headers({"authorization": value}), basic=True) is None


def test_two_headers_hold_no_key():
    raw = [(b"authorization", f"Bearer {FIRST}".encode())] * 2
    assert presented_key(Headers(raw=raw), basic=True) is None
    assert presented_key(Headers({}), basic=True) is None
