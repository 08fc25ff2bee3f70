"""Replicas of a reward model on Ray Serve, for several GPUs or machines: the responses of a prompt meet on one."""

import asyncio
import logging
import time
from binascii import crc32
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from plaudit.errors import ConfigError
from plaudit.scoring.reward_model import RewardModel
from plaudit.serving.scoring_request import Conversation, Item, ModelInfo, Pair, Scored, ScoringRequest, Text
from plaudit.serving.served_model import ServedModel, load_in_passing_thread
from plaudit.serving.serving_errors import ServingError

try:
    import ray
    from ray import serve
    from ray.exceptions import RayError, RayTaskError
    from ray.serve.exceptions import RayServeException
except ImportError as error:
    raise ConfigError(f"--engine ray needs Ray Serve ({error}). Install it: pip install 'ray[serve]'") from error

__all__ = ["RayReplicas", "replica_of"]

_LOAD_TRIES = 2
_MOST_CALLS = 100_000  # at once on a replica: the queue is bounded where requests are accepted


class RayReplicas:
    """A reward model on several replicas, each a process with a GPU of its own if there are GPUs.

    The Ray cluster is the one of RAY_ADDRESS, else one that runs or is started on this machine. Ray replaces a replica
    that has died; meanwhile the requests of its prompts wait.

    Args:
        name: The name under which the model is served.
        path_or_id: A folder that each machine has, or a hub id.
        replicas: Number of replicas.
        truncates: Truncate a sequence that is too long where the request does not say, from the left.
        options: Arguments of `RewardModel.from_pretrained`.

    Attributes:
        info: Name, version and properties of the model.
        max_tokens_per_batch: The most distinct tokens of a step on a replica.
        in_use: Number of requests that are being answered.
        queued_items: Number of their items.
        queued_tokens: 0: tokens are counted on the replicas.

    Raises:
        ConfigError: The replicas cannot load the model, or the cluster has no room for them.
    """

    def __init__(
        self, name: str, path_or_id: str, replicas: int, *, truncates: bool = False, options: dict[str, Any]
    ) -> None:
        if not ray.is_initialized():
            ray.init(logging_level=logging.WARNING)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        local = Path(path_or_id).expanduser()
        path = str(local.absolute()) if local.exists() else path_or_id  # Ray's processes run in folders of their own
        on_gpu = options.get("device") != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        deployment = serve.deployment(
            _Replica, num_replicas=1, max_ongoing_requests=_MOST_CALLS, max_constructor_retry_count=_LOAD_TRIES,
            ray_actor_options={"num_cpus": 1, "num_gpus": int(on_gpu)},
            logging_config={"enable_access_log": False, "log_level": "WARNING"},
        )  # fmt: skip
        application = deployment.bind(name, path, truncates, options)
        self._names = [f"plaudit-{name}-{number}" for number in range(replicas)]
        serve.start(proxy_location="Disabled")  # Plaudit's own server speaks HTTP
        try:
            self._handles = serve.run_many(
                [serve.RunTarget(application, each, route_prefix=None) for each in self._names]
            )
        except RuntimeError as error:
            raise ConfigError(f"{name}: the replicas on Ray could not be started: {error}") from error
        self.info, self.max_tokens_per_batch, self._response_start = self._handles[0].describe.remote().result()
        self.in_use = self.queued_items = self.queued_tokens = 0

    async def score(
        self,
        request: ScoringRequest,
        *,
        client: str,
        deadline: float,
        on_tokens: Callable[[int], object] = lambda _: None,  # noqa: ARG002  # tokens are counted on the replicas
    ) -> Scored:
        """Return the rewards of a request, whose items are scored by the replicas of their prompts.

        Cancelling the task that awaits this cancels what the replicas have not run.

        Args:
            request: The request.
            client: Name of the client, among whom each replica is shared fairly.
            deadline: Time (`time.monotonic`) after which no answer is wanted.
            on_tokens: Not called.

        Raises:
            ServingError: An item cannot be scored, an option is not available, or a replica failed.
        """
        places = defaultdict(list)
        for place, item in enumerate(request.items):
            places[replica_of(item, len(self._handles), self._response_start)].append(place)
        calls = [
            self._handles[replica].score.remote(_part(request, own), client, deadline - time.monotonic())
            for replica, own in places.items()
        ]
        self.in_use += 1
        self.queued_items += len(request.items)
        try:
            answers = await asyncio.gather(*calls)
        except RayTaskError:
            raise ServingError("model_fault", "the request failed on a replica.") from None
        except (RayError, RayServeException):
            raise ServingError("overloaded", "a replica has ended; Ray replaces it.", retry_after=5) from None
        finally:
            self.in_use -= 1
            self.queued_items -= len(request.items)
            for call in calls:
                call.cancel()  # has no effect on those that are answered
        for answer in answers:
            if isinstance(answer, dict):
                raise ServingError(**answer)
        return _joined(answers, list(places.values()))

    async def check(self, seconds: float) -> None:
        """Make sure that each replica runs.

        Raises:
            ServingError: A replica did not answer in time, or failed.
        """
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(handle.check.remote(seconds) for handle in self._handles))
        except (TimeoutError, RayError, RayServeException):
            raise ServingError("dead", f"a replica did not answer within {seconds:g} s.") from None

    def find_fault(self) -> str | None:
        """Return `None`: Ray replaces a replica that has died or hangs."""
        return None

    def fail_all(self, message: str) -> None:
        """Leave what waits to its deadline."""

    def close(self) -> None:
        """End the replicas."""
        with ThreadPoolExecutor(len(self._names)) as pool:  # each takes seconds
            list(pool.map(serve.delete, self._names))

    def join(self, seconds: float) -> bool:  # noqa: ARG002  # the replicas are processes of their own
        """Return `True`: `close` waits for the replicas."""
        return True


def replica_of(item: Item, replicas: int, response_start: str = "") -> int:
    """Return the number of the replica that scores an item, the same for all responses of a prompt.

    In a text that a chat template has written, the prompt ends with the words that open a response. A text without
    them, and token ids, count as a whole.

    Args:
        item: The item.
        replicas: Number of replicas.
        response_start: The words with which the model's chat template opens a response, "" if unknown.
    """
    match item:
        case Pair():
            prompt = repr(item.prompt)
        case Conversation():
            prompt = repr(item.messages[:-1])
        case Text():
            prompt = (item.text.rpartition(response_start)[0] if response_start else "") or item.text
        case _:
            prompt = repr(item.ids)
    return crc32(prompt.encode(errors="surrogatepass")) % replicas


def _part(request: ScoringRequest, places: list[int]) -> ScoringRequest:
    return replace(request, items=[request.items[n] for n in places], names=[request.names[n] for n in places])


def _joined(parts: list[Scored], places: list[list[int]]) -> Scored:
    """Return the rewards of all parts, each at its place in the request."""
    if len(parts) == 1:
        return parts[0]
    if len({part.weight_version for part in parts}) > 1:
        raise ServingError("overloaded", "the replicas are changing their weights.", retry_after=5)
    order = sorted((place, part, n) for part, own in enumerate(places) for n, place in enumerate(own))
    columns: dict[str, Any] = {
        column: [getattr(parts[part], column)[n] for _, part, n in order]
        for column in ("rewards", "values", "tokens", "truncated", "stds", "value_stds", "members", "columns")
        if getattr(parts[0], column)
    }
    return replace(
        parts[0], **columns, distinct_tokens=sum(part.distinct_tokens for part in parts),
        queued_seconds=max(part.queued_seconds for part in parts),
        run_seconds=max(part.run_seconds for part in parts),
    )  # fmt: skip


class _Replica:
    """A `ServedModel` in a process of its own, which returns Plaudit's errors: Ray would wrap raised ones."""

    def __init__(self, name: str, path_or_id: str, truncates: bool, options: dict[str, Any]) -> None:
        def load() -> ServedModel:
            reward_model = RewardModel.from_pretrained(path_or_id, **options)
            return ServedModel(name, reward_model, pool=ThreadPoolExecutor(2), truncates=truncates)

        self._model = load_in_passing_thread(load)
        self._response_start = _response_start(self._model.reward_model.tokenizer)

    def describe(self) -> tuple[ModelInfo, int, str]:
        return self._model.info, self._model.max_tokens_per_batch, self._response_start

    async def score(self, request: ScoringRequest, client: str, seconds: float) -> Scored | dict[str, Any]:
        try:
            return await self._model.score(request, client=client, deadline=time.monotonic() + seconds)
        except ServingError as error:
            return {name: getattr(error, name) for name in ("failure", "message", "param", "retry_after")}

    async def check(self, seconds: float) -> None:
        await self._model.check(seconds)

    def check_health(self) -> None:
        """Raise when the thread of the model has died or hangs; Ray calls this, and replaces the replica."""
        if fault := self._model.find_fault():
            raise RuntimeError(fault)


def _response_start(tokenizer: Any) -> str:
    """Return the words with which a chat template opens a response, "" where it has none."""
    if not tokenizer.chat_template:
        return ""
    messages = [{"role": "user", "content": "?"}]
    written = [
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens) for opens in (False, True)
    ]
    return written[1].removeprefix(written[0]) if written[1] != written[0] else ""
