"""`ScoringService`: the served models behind one admission, in the words of no protocol."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Literal, Protocol

import plaudit
from plaudit.serving.admission import Admission
from plaudit.serving.scheduler import Step
from plaudit.serving.scoring_request import ModelInfo, Scored, ScoringRequest, ServerInfo
from plaudit.serving.server_limits import ServerLimits
from plaudit.serving.server_metrics import ServerMetrics
from plaudit.serving.serving_errors import ServingError

__all__ = ["AnsweringModel", "ScoringService"]

logger = logging.getLogger(__name__)

_HEALTH_SECONDS = 10.0  # within which a model must have run


class AnsweringModel(Protocol):
    """A model as the service needs it: a `ServedModel`, or `RayReplicas` of one."""

    info: ModelInfo
    in_use: int

    @property
    def max_tokens_per_batch(self) -> int:
        """The most distinct tokens of a step."""

    @property
    def queued_items(self) -> int:
        """Number of sequences that wait, without those of the running step."""

    @property
    def queued_tokens(self) -> int:
        """Number of their tokens."""

    async def score(
        self, request: ScoringRequest, *, client: str, deadline: float, on_tokens: Callable[[int], object]
    ) -> Scored:
        """Return the rewards of a request."""

    async def check(self, seconds: float) -> None:
        """Raise `ServingError` if the model does not run within the given seconds."""

    def find_fault(self) -> str | None:
        """Return the reason why the model can answer no more, if there is one."""

    def fail_all(self, message: str) -> None:
        """Answer what waits, and all later requests, with the failure "dead"."""

    def close(self) -> None:
        """End what runs the model, after its step; what still waits fails."""

    def join(self, seconds: float) -> bool:
        """Wait for that end, and return whether it has come."""


class ScoringService:
    """Answers requests with one of several models, and refuses what cannot be answered in time.

    Args:
        limits: The bounds of requests and of the queue.
        truncates: Whether a model truncates a sequence that is too long where the request does not say.

    Attributes:
        state: "loading", "ready", "draining" or "dead".
        metrics: The metrics of the server.
        in_flight: Number of requests that are being answered.
    """

    def __init__(self, limits: ServerLimits, *, truncates: bool = False) -> None:
        self.limits, self.truncates = limits, truncates
        self.metrics = ServerMetrics()
        self.state: Literal["loading", "ready", "draining", "dead"] = "loading"
        self.in_flight = 0
        self._admission = Admission(
            max_items=limits.max_queued_items, max_tokens=limits.max_queued_tokens, max_bytes=limits.max_queued_bytes
        )
        self._models: dict[str, AnsweringModel] = {}
        self._retiring: dict[asyncio.Task[None], AnsweringModel] = {}  # replaced, and not yet done with their requests

    @property
    def models(self) -> list[AnsweringModel]:
        """The models that answer now; the first is the default."""
        return list(self._models.values())

    def record_step(self, step: Step) -> None:
        """Take note of a step, in the thread of the model that ran it."""
        self._admission.record(step)
        self.metrics.count_step(step)

    def serve(self, models: Iterable[AnsweringModel]) -> None:
        """Answer with these models from now on."""
        for model in models:
            self._models[model.info.name] = model
            self.metrics.weights.labels(model.info.name, model.info.weight_version).set(1)
        self.state = "ready"

    def replace(self, model: AnsweringModel) -> None:
        """Answer with another version of a model from now on; the old one finishes what it has and ends."""
        old = self._models[model.info.name]
        self._models[model.info.name] = model
        self.metrics.weights.remove(old.info.name, old.info.weight_version)  # or a run of swaps would fill the memory
        self.metrics.weights.labels(model.info.name, model.info.weight_version).set(1)
        retiring = asyncio.get_running_loop().create_task(_close_when_idle(old))
        self._retiring[retiring] = old
        retiring.add_done_callback(self._retiring.pop)

    def choose(self, name: str | None) -> AnsweringModel:
        """Return the model of this name; where one model is served, it answers to any name.

        Raises:
            ServingError: Several models are served, and none has the name.
        """
        if name is None or len(self._models) == 1:
            return next(iter(self._models.values()))
        if name not in self._models:
            served = ", ".join(self._models)
            raise ServingError("unknown_model", f"model: expected one of {served}.", param="model")
        return self._models[name]

    async def score(self, request: ScoringRequest, *, client: str, size: int, seconds: float) -> Scored:
        """Return the rewards of a request.

        Args:
            request: The request.
            client: Name of the client, among whom the models are shared fairly.
            size: Bytes of the body.
            seconds: Time within which the client wants the answer.

        Raises:
            ServingError: The request cannot be answered, or not in time.
        """
        if self.state != "ready":
            raise ServingError(_UNREADY[self.state], f"the server is {self.state}.", retry_after=5)
        if len(request.items) > self.limits.max_items:
            most = f"{self.limits.max_items:,}"
            raise ServingError(
                "invalid", f"expected at most {most} items in a request, got more: send several requests."
            )
        model = self.choose(request.model)
        deadline = time.monotonic() + seconds
        with self._admission.reserve(
            client=client,
            items=len(request.items),
            size=size,
            seconds=seconds,
            queued_tokens=sum(each.queued_tokens for each in self.models),  # models of one device take turns
        ) as reservation:
            try:
                async with asyncio.timeout(seconds):
                    scored = await model.score(
                        request, client=client, deadline=deadline, on_tokens=reservation.settle
                    )  # fmt: skip
            except TimeoutError:
                raise ServingError("late", f"there was no answer within {seconds:g} s.", retry_after=1) from None
        self.metrics.count_scored(scored)
        return scored

    async def check(self) -> None:
        """Make sure that each model runs.

        Raises:
            ServingError: The service has ended, or a model does not answer.
        """
        if self.state in ("loading", "dead"):
            raise ServingError("dead", f"the server is {self.state}.")
        await asyncio.gather(*(model.check(_HEALTH_SECONDS) for model in self.models))

    def info(self) -> ServerInfo:
        """Return what the information routes give out."""
        return ServerInfo(
            models=[model.info for model in self.models],
            version=plaudit.__version__,
            max_items=self.limits.max_items,
            max_tokens_per_batch=max((model.max_tokens_per_batch for model in self.models), default=0),
            max_queued_items=self.limits.max_queued_items,
            truncates=self.truncates,
        )

    def measure(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        self.metrics.in_flight.set(self.in_flight)
        self.metrics.queued_items.set(sum(model.queued_items for model in self._running()))
        self.metrics.queued_tokens.set(sum(model.queued_tokens for model in self._running()))
        return self.metrics.text()

    def find_dead_model(self) -> str | None:
        """Return the reason why the service must end: the thread of a model has died, or its step hangs."""
        return next((fault for model in self._running() if (fault := model.find_fault())), None)

    def die(self, reason: str) -> None:
        """Answer everything with an error from now on."""
        logger.error("%s: the server ends", reason)
        self.state = "dead"
        for model in self._running():
            model.fail_all("the engine has stopped; the server ends.")

    def close(self) -> None:
        """End the threads of the models after their steps; what still waits gets an error."""
        for model in self._running():
            model.close()

    def join(self, seconds: float) -> bool:
        """Wait for the threads to end, for at most some seconds each; return whether all have ended."""
        return all(model.join(seconds) for model in self._running())

    def _running(self) -> list[AnsweringModel]:
        """Return the models that have a thread: a step of a replaced one can hang, and hold the device, as well."""
        return [*self._models.values(), *self._retiring.values()]


_UNREADY: dict[str, Literal["draining", "dead"]] = {"loading": "draining", "draining": "draining", "dead": "dead"}


async def _close_when_idle(model: AnsweringModel) -> None:
    try:
        while model.in_use:
            await asyncio.sleep(0.05)
    finally:
        model.close()
