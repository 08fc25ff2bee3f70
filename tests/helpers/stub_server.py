"""The native API of `plaudit serve` in the standard library, around a reward model in this process."""

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from plaudit.errors import DataError

__all__ = ["DROPPED", "StubServer"]

DROPPED = "dropped"


class StubServer:
    """A server on a free port of 127.0.0.1, while its context is open.

    Attributes:
        answers: Answers to give to the next POSTs before true ones: (status, headers, body), or `DROPPED`.
        bodies: The bodies of all POSTs.
        headers: The headers of all requests.
        connections: How many connections were opened.
        versions: Versions of the weights that the next answers tell; the last one stays.
        info: The properties of the model at /info.
        others: The properties of other models there.
        max_items: The most items of a request.
    """

    def __init__(self, model, key=None):
        self.model, self.key = model, key
        self.answers, self.bodies, self.headers, self.connections, self.versions = [], [], [], 0, ["v1"]
        self.others, self.max_items = [], 10_000
        self.info = {
            "name": "served", "fingerprint": "abc", "weight_version": "v1", "dtype": "float32", "layout": "forest",
            "max_length": model.max_length, "temperature": model.temperature, "scale": model.scale,
            "trained_on": model.trained_on, "uncertainty": model.uncertainty and model.uncertainty.to_dict(),
        }  # fmt: skip

    def __enter__(self):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"stub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def rewards(self, body):
        """The status and the answer to a POST of /v1/rewards."""
        if "model" in body and body["model"] != self.info["name"]:
            return _error(404, "unknown_model", "expected one of served")
        if body.get("normalize") and self.model.scale is None:
            return _error(422, "invalid", "normalize: the model was saved without mean and deviation.", "normalize")
        items = [each.get("text") or each["messages"] for each in body["items"]]
        names, options = [f"items[{number}]" for number in range(len(items))], [body["template_kwargs"]] * len(items)
        self.model.overlong = "error" if body["truncation"] == "error" else "truncate"
        try:
            scored = self.model.score(
                items, options=options, names=names, normalize=body.get("normalize", False), return_details=True
            )
        except DataError as error:
            return _error(422, "invalid", str(error), re.match(r"items\[\d+\]", str(error))[0])
        version = self.versions.pop(0) if len(self.versions) > 1 else self.versions[0]
        asked = body.get("columns") and self.model.uncertainty is not None
        names = ("rewards", "tokens", "truncated", "columns")[: 4 if asked else 3]
        values = {name: getattr(scored, name).tolist() for name in names}
        return 200, {"model": "served", "weight_version": version} | values


def _error(status, kind, message, param=None):
    return status, {"error": {"type": kind, "message": message, "param": param}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.stub.connections += 1

    def do_GET(self):
        self.stub.headers.append(self.headers)
        info = {"models": [self.stub.info, *self.stub.others], "limits": {"max_items": self.stub.max_items}}
        status, answer = (200, info) if self.path == "/info" else (404, {})
        self.reply(status, {}, json.dumps(answer))

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.stub.headers.append(self.headers)
        self.stub.bodies.append(json.loads(body))
        if self.stub.answers:
            answer = self.stub.answers.pop(0)
            if answer == DROPPED:
                self.close_connection = True
            else:
                self.reply(*answer)
        elif self.stub.key is not None and self.headers["Authorization"] != f"Bearer {self.stub.key}":
            status, answer = _error(401, "unauthorized", "expected a key")
            self.reply(status, {}, json.dumps(answer))
        elif self.path == "/v1/rewards":
            status, answer = self.stub.rewards(self.stub.bodies[-1])
            self.reply(status, {}, json.dumps(answer))
        else:
            self.reply(404, {}, "no such route")

    def reply(self, status, headers, body):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body.encode()))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass
