"""A server of the page for tests in a browser: the files of the page, and the native API with made-up rewards."""

import asyncio
import math
import re
import threading
import zlib
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import Route

import plaudit

PAGE = Path(plaudit.__file__).parent / "serving" / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
MAX_LENGTH = 400  # tokens of the stub are words


def text_of(item):
    """The whole text of an item of the native API."""
    if "text" in item:
        return item["text"]
    messages = item.get("messages")
    if messages is None and isinstance(item["prompt"], str):
        return item["prompt"] + item["response"]
    messages = item["prompt"] + item["response"] if messages is None else messages
    return "".join(f"<{message['role']}> {message['content']}\n" for message in messages)


def pieces_of(text):
    return re.findall(r"\s*\S+|\s+$", text)


def reward_of(text):
    """The reward that the stub gives a text: each word adds something between -0.45 and 0.54."""
    return sum((zlib.crc32(piece.strip().encode()) % 100 - 45) / 100 for piece in pieces_of(text))


def std_of(text):
    """The standard deviation that the stub gives the reward of a text where its model has an uncertainty."""
    return 0.05 + len(pieces_of(text)) % 7 / 20


def softmax(rewards):
    powers = [math.exp(reward - max(rewards)) for reward in rewards]
    return [power / sum(powers) for power in powers]


class PageStub:
    """The state of the server, which tests read and set.

    Attributes:
        bodies: The JSON bodies that came, with their paths.
        refusals: How many of the next scoring requests are refused as overloaded.
        key_refused: Whether scoring requests are answered with 401.
        trained_on: What `/info` says of the first model.
        truncates: Whether `/info` says that texts which are too long are truncated.
        models: How many models `/info` lists.
        is_ensemble: Whether the models give standard deviations.
        most_at_once: The most requests for rewards that were under way at the same time.
        arrived: Released by each request for rewards.
        gate: Requests for rewards wait for it.
    """

    def __init__(self):
        self.gate = threading.Event()
        self.reset()

    def reset(self):
        self.bodies, self.refusals, self.key_refused, self.trained_on, self.models = [], 0, False, "texts", 1
        self.most_at_once, self.at_once, self.truncates, self.is_ensemble = 0, 0, False, False
        self.arrived = threading.Semaphore(0)
        self.gate.set()

    @contextmanager
    def serve(self):
        """Serve on a free port of this machine; gives the address."""
        files = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css", "/icon.svg": "icon.svg"}
        routes = [Route(path, self.file(name)) for path, name in files.items()]
        routes.append(Route("/info", self.info))
        scoring = {"/v1/rank": self.rank, "/v1/rewards": self.rewards, "/v1/prefix-rewards": self.prefix_rewards}
        routes += [Route(path, self.scoring(path, answer), methods=["POST"]) for path, answer in scoring.items()]
        server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=0, log_level="error"))
        socket = server.config.bind_socket()
        thread = threading.Thread(target=server.run, args=([socket],), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{socket.getsockname()[1]}/"
        server.should_exit = True
        thread.join()

    def file(self, name):
        return lambda request: FileResponse(PAGE / name, headers={"Content-Security-Policy": POLICY})

    def info(self, request):
        model = {
            "weight_version": "3f9c1a", "created": 1767225600, "dtype": "bfloat16", "max_length": MAX_LENGTH,
            "trained_on": self.trained_on, "has_chat_template": True, "temperature": 1.7, "scale": None,
            "layout": "forest", "fingerprint": None, "uncertainty": {"kind": "members"} if self.is_ensemble else None,
        }  # fmt: skip
        models = [{"name": f"reward-{n}", **model} for n in range(self.models)]
        limits = {"max_items": 2048}
        return JSONResponse({"version": "0.12", "models": models, "limits": limits, "truncates": self.truncates})

    def scoring(self, path, answer):
        async def route(request):
            body = await request.json()
            self.bodies.append((path, body))
            if self.key_refused:
                return self.error(401, "unauthorized", "Expected a key.")
            if self.refusals:
                self.refusals -= 1
                return self.error(503, "overloaded", "The queue is full.", headers={"Retry-After": "0"})
            return await answer(body)

        return route

    def error(self, status, kind, message, param=None, headers=None):
        return JSONResponse({"error": {"type": kind, "message": message, "param": param}}, status, headers)

    def common(self, texts):
        tokens = [len(pieces_of(text)) for text in texts]
        usage = {"tokens": sum(tokens), "distinct_tokens": sum(tokens) // 2}
        timing = {"queued_ms": 0.2, "run_ms": 11.5, "total_ms": 12.1}
        return {"model": "reward-0", "weight_version": "3f9c1a", "usage": usage, "timing": timing}, tokens

    def stds(self, texts):
        """The field of standard deviations that an answer has."""
        return {"reward_stds": [std_of(text) for text in texts]} if self.is_ensemble else {}

    def refused(self, texts, names):
        """An error where a text is too long or makes the model fail, as the word FAULT does here."""
        for text, name in zip(texts, names, strict=True):
            if len(pieces_of(text)) > MAX_LENGTH:
                message = f"{name} has {len(pieces_of(text))} tokens, and the model takes {MAX_LENGTH}."
                return self.error(422, "too_long", message, name)
        if any("FAULT" in text for text in texts):
            return self.error(500, "model_fault", "The model failed on this request.")
        return None

    async def rank(self, body):
        texts = [text_of({"prompt": body["prompt"], "response": response}) for response in body["responses"]]
        if error := self.refused(texts, [f"responses[{n}]" for n in range(len(texts))]):
            return error
        common, tokens = self.common(texts)
        rewards = [reward_of(text) for text in texts]
        shares = softmax(rewards)
        order = sorted(range(len(texts)), key=lambda n: -rewards[n])
        results = [
            {"index": n, "reward": rewards[n], "win_probability": shares[n]}
            | ({"reward_std": std_of(texts[n])} if self.is_ensemble else {})
            for n in order
        ]
        truncated = ["TRUNCATED" in text for text in texts]
        return JSONResponse({"results": results, "tokens": tokens, "truncated": truncated, **common})

    async def rewards(self, body):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.arrived.release()
        try:
            while not self.gate.is_set():
                await asyncio.sleep(0.01)
            texts = [text_of(item) for item in body["items"]]
            if error := self.refused(texts, [f"items[{n}]" for n in range(len(texts))]):
                return error
            common, tokens = self.common(texts)
            rewards = [reward_of(text) for text in texts]
            values = {"rewards": rewards, "tokens": tokens, "truncated": [False] * len(texts)}
            return JSONResponse(values | self.stds(texts) | common)
        finally:
            self.at_once -= 1

    async def prefix_rewards(self, body):
        text = text_of(body["item"])
        if error := self.refused([text], ["item"]):
            return error
        pieces = pieces_of(text)
        ends = [n for n in range(1, len(pieces) + 1) if n % body["every"] == 0 or n == len(pieces)]
        starts = [0, *ends[:-1]]
        common, tokens = self.common([text])
        prefixes = ["".join(pieces[:end]) for end in ends]
        rewards = [reward_of(prefix) for prefix in prefixes]
        added = ["".join(pieces[start:end]) for start, end in zip(starts, ends, strict=True)]
        answer = {"positions": ends, "pieces": added, "rewards": rewards, "tokens": tokens[0], "truncated": False}
        return JSONResponse(answer | self.stds(prefixes) | common)
