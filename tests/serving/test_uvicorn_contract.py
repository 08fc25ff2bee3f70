"""The methods and attributes of uvicorn's `HttpToolsProtocol` that `BoundedHttpProtocol` relies on.

uvicorn does not document them: an upgrade that renames one would silently take a bound away.
"""

import inspect

import httptools
import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from plaudit.serving.http_protocol import BoundedHttpProtocol

OVERRIDDEN = {
    "connection_lost": ["exc"],
    "connection_made": ["transport"],
    "data_received": ["data"],
    "on_body": ["body"],
    "on_header": ["name", "value"],
    "on_headers_complete": [],
    "on_message_begin": [],
    "on_message_complete": [],
    "on_response_complete": [],
    "on_url": ["url"],
    "pause_writing": [],
    "resume_writing": [],
    "send_400_response": ["msg"],
    "timeout_keep_alive_handler": [],
}
ATTRIBUTES = ["cycle", "headers", "loop", "parser", "pipeline", "server_state", "transport"]
OF_A_CYCLE = ["disconnected", "keep_alive", "message_event", "response_complete", "response_started"]


def test_every_override_is_listed_here():
    own = {name for name, value in vars(BoundedHttpProtocol).items() if inspect.isfunction(value)}
    assert {name for name in own if hasattr(HttpToolsProtocol, name)} - {"__init__"} == OVERRIDDEN.keys()


@pytest.mark.parametrize("name", sorted(OVERRIDDEN))
def test_the_method_takes_the_parameters_that_the_override_assumes(name):
    assert list(inspect.signature(getattr(HttpToolsProtocol, name)).parameters)[1:] == OVERRIDDEN[name]


@pytest.mark.parametrize("name", sorted({"send_400_response", "timeout_keep_alive_handler"}))
def test_the_method_is_called_by_the_protocol_itself(name):
    assert f"self.{name}" in inspect.getsource(HttpToolsProtocol)


def test_the_response_is_reported_by_the_cycle():
    assert "on_response=self.on_response_complete" in inspect.getsource(HttpToolsProtocol)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_the_protocol_has_the_attribute(name):
    assert f"self.{name}: " in (source := inspect.getsource(HttpToolsProtocol)) or f"self.{name} = " in source


@pytest.mark.parametrize("name", OF_A_CYCLE)
def test_a_request_and_its_response_have_the_attribute(name):
    assert f"self.{name} = " in inspect.getsource(RequestResponseCycle.__init__)


def test_the_parser_tells_a_request_for_another_protocol():
    class Callbacks:
        def on_headers_complete(self):
            upgrades.append(parser.should_upgrade())

    upgrades = []
    parser = httptools.HttpRequestParser(Callbacks())
    with pytest.raises(httptools.HttpParserUpgrade):
        parser.feed_data(b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")
    assert upgrades == [True]
