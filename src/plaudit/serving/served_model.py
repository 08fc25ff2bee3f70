"""`ServedModel`: one version of a reward model that answers requests, many at a time."""

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from plaudit.errors import ConfigError
from plaudit.scoring.base_reward_model import ScoredSequences
from plaudit.scoring.reward_model import RewardModel
from plaudit.serving.item_rendering import ItemRenderer
from plaudit.serving.scheduler import Scheduler, Step
from plaudit.serving.scoring_request import ModelInfo, Scored, ScoringRequest
from plaudit.serving.serving_errors import ServingError
from plaudit.serving.submission import Outcome
from plaudit.uncertainty import Uncertainty, check_aggregate, checked_uncertainty

__all__ = ["ServedModel", "load_in_passing_thread"]

# Items that are rendered in one go. A request with more gives way to others between two slices.
_SLICE = 64
_MOST_PREFIX_TOKENS = 2**24  # of all prefixes of a sequence together, each of which is queued as a copy: 64 MiB


class ServedModel:
    """One version of a reward model, with the thread that runs it.

    Args:
        name: The name under which the model is served.
        reward_model: The model. Nothing else may use it meanwhile.
        pool: Threads that render and tokenise.
        truncates: Truncate a sequence that is too long where the request does not say, from the left.
        device_lock: A lock that the models of one device share, so that they run in turns.
        on_step: Called in the model's thread after each step.
        hung_after: Seconds after which a step counts as hung.

    Attributes:
        info: Name, version and properties of the model.
        scheduler: The queue and the thread of the model.
        in_use: Number of requests that this version is answering.
    """

    def __init__(
        self,
        name: str,
        reward_model: RewardModel,
        *,
        pool: ThreadPoolExecutor,
        truncates: bool = False,
        device_lock: "Lock | None" = None,
        on_step: Callable[[Step], object] = lambda _: None,
        hung_after: float = 300.0,
    ) -> None:
        self.reward_model, self._pool, self.in_use = reward_model, pool, 0
        self._default_truncation: Literal["error", "left"] = "left" if truncates else "error"
        self._renderer = ItemRenderer(
            reward_model.tokenizer, trained_on=reward_model.trained_on, max_length=reward_model.max_length,
            vocabulary_size=reward_model.engine.vocabulary_size,
        )  # fmt: skip
        self._probe = np.asarray(reward_model.warm_up(), dtype=np.int64)
        self.scheduler = Scheduler(reward_model.engine, device_lock=device_lock, on_step=on_step, hung_after=hung_after)
        self.info = _describe(name, reward_model)
        self.scheduler.start()

    async def score(
        self,
        request: ScoringRequest,
        *,
        client: str,
        deadline: float,
        on_tokens: Callable[[int], object] = lambda _: None,
    ) -> Scored:
        """Return the rewards of a request.

        Cancelling the task that awaits this takes the sequences that have not run out of the queue.

        Args:
            request: The request.
            client: Name of the client, among whom the model is shared fairly.
            deadline: Time (`time.monotonic`) after which no answer is wanted.
            on_tokens: Called with the number of tokens once they are known, before anything runs.

        Raises:
            ServingError: An item cannot be scored, an option is not available, or the model failed.
        """
        self.in_use += 1
        try:
            return await self._score(request, client, deadline, on_tokens)
        finally:
            self.in_use -= 1

    async def _score(
        self, request: ScoringRequest, client: str, deadline: float, on_tokens: Callable[[int], object]
    ) -> Scored:
        arrived = time.monotonic()
        shift, scale = self._transformation(request)
        uncertainty = self._uncertainty_for(request)
        sequences, truncated = await self._sequences(request)
        tokens, pieces = [len(each) for each in sequences], []
        on_tokens(sum(tokens))  # prefixes run once together, so they count as the one sequence that they are of
        if request.prefix_step is not None:
            (whole,) = sequences
            tokens = _prefix_lengths(len(whole), request.prefix_step)
            pieces = await self._in_pool(self._renderer.pieces, whole, tokens)
            sequences, truncated = [whole[:stop] for stop in tokens], [False] * (len(tokens) - 1) + truncated
        outcome = await asyncio.wrap_future(await self._submit(sequences, client, deadline))
        rewards = values = _floats(outcome.rewards)
        if (shift, scale, request.activation) != (0.0, 1.0, "identity"):
            changed = ((outcome.rewards - np.float32(shift)) / np.float32(scale)).astype(np.float32)
            if request.activation == "sigmoid":
                changed = expit(changed.astype(np.float64)).astype(np.float32)
            values = _floats(changed)
        scored = Scored(
            self.info.name, self.info.weight_version, rewards, values, tokens, truncated,
            outcome.distinct_tokens, outcome.started - arrived, outcome.finished - outcome.started, pieces,
            self.info.label,
        )  # fmt: skip
        if uncertainty is None:
            return scored
        return await self._in_pool(_with_uncertainty, scored, request, outcome.columns, uncertainty, scale)

    async def _submit(self, sequences: list[NDArray[np.int64]], client: str, deadline: float) -> "Future[Outcome]":
        submit = partial(self.scheduler.submit, sequences, client=client, deadline=deadline)
        if len(sequences) <= _SLICE:
            return submit()
        # To sort thousands of sequences takes a tenth of a second, in which the event loop answers others.
        submitting = self._pool.submit(submit)
        try:
            return await asyncio.wrap_future(submitting)
        except asyncio.CancelledError:  # the pool may be at it, and nobody else will know of what it queues
            submitting.add_done_callback(_cancel_result)
            raise

    async def check(self, seconds: float) -> None:
        """Run a short sequence through the queue, unless a step has finished within the last seconds.

        Raises:
            ServingError: The model did not score it in time, or failed.
        """
        finished = self.scheduler.last_step_finished
        if finished is not None and time.monotonic() - finished < seconds:
            return
        deadline = time.monotonic() + seconds
        future = asyncio.wrap_future(self.scheduler.submit([self._probe], client="health", deadline=deadline))
        try:
            await asyncio.wait_for(future, seconds)
        except TimeoutError:
            raise ServingError("dead", f"the model did not answer within {seconds:g} s.") from None

    @property
    def max_tokens_per_batch(self) -> int:
        """The most distinct tokens of a step."""
        return self.reward_model.engine.max_tokens_per_batch

    @property
    def queued_items(self) -> int:
        """Number of sequences that wait, without those of the running step."""
        return self.scheduler.queued_items

    @property
    def queued_tokens(self) -> int:
        """Number of their tokens."""
        return self.scheduler.queued_tokens

    def find_fault(self) -> str | None:
        """Return the reason why the model can answer no more, if there is one."""
        if self.scheduler.state == "dead":
            return f"the engine of {self.info.name} has died"
        if self.scheduler.is_hung:
            return f"a step of {self.info.name} has been running for too long"
        return None

    def fail_all(self, message: str) -> None:
        """Answer what waits, and all later requests, with the failure "dead"."""
        self.scheduler.fail_all(message)

    def close(self) -> None:
        """End the thread after its step; what still waits fails."""
        self.scheduler.stop()

    def join(self, seconds: float) -> bool:
        """Wait for the thread to end, and return whether it has ended."""
        return self.scheduler.join(seconds)

    async def _sequences(self, request: ScoringRequest) -> tuple[list[NDArray[np.int64]], list[bool]]:
        """Return the token ids of each item within the limit, and whether it was cut."""
        sequences: list[NDArray[np.int64]] = []
        truncated: list[bool] = []
        for start in range(0, len(request.items), _SLICE):
            part = slice(start, start + _SLICE)
            cut, lengths = await self._in_pool(self._render_slice, request, part)
            sequences += cut
            truncated += [len(ids) < length for ids, length in zip(cut, lengths, strict=True)]
        return sequences, truncated

    def _render_slice(self, request: ScoringRequest, part: slice) -> tuple[list[NDArray[np.int64]], list[int]]:
        names = request.names[part]
        whole = self._renderer.render(request.items[part], names)
        truncation = request.truncation or self._default_truncation
        cut = [
            self._renderer.cut(ids, name, truncation=truncation, max_length=request.max_length)
            for ids, name in zip(whole, names, strict=True)
        ]
        return cut, [len(ids) for ids in whole]

    async def _in_pool(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def _uncertainty_for(self, request: ScoringRequest) -> Uncertainty | None:
        """Return the uncertainty of the model, after a check that it can give what the request asks for."""
        param = "members" if request.aggregate == "mean" else "normalize" if request.normalize else "aggregate"
        try:
            check_aggregate(request.aggregate, request.k, normalize=request.normalize)
            return checked_uncertainty(
                self.reward_model.uncertainty, self.info.name, request.aggregate, request.k,
                needed_by="members" if request.members else None,
            )  # fmt: skip
        except ConfigError as error:
            raise ServingError("invalid", str(error), param=param) from None

    def _transformation(self, request: ScoringRequest) -> tuple[float, float]:
        """Return what is subtracted from the rewards, and what they are divided by."""
        if request.normalize and request.calibrated:
            raise ServingError("invalid", "normalize and calibrated cannot be combined.", param="calibrated")
        if request.normalize:
            if self.info.scale is None:
                raise ServingError(
                    "invalid", "normalize: the model was saved without mean and deviation.", param="normalize"
                )
            return self.info.scale
        if request.calibrated:
            if not self.info.temperature:
                raise ServingError(
                    "invalid", "calibrated: the model was saved without a temperature.", param="calibrated"
                )
            return 0.0, self.info.temperature
        return 0.0, 1.0


def _with_uncertainty(
    scored: Scored, request: ScoringRequest, columns: NDArray[np.float32], uncertainty: Uncertainty, scale: float
) -> Scored:
    """Return rewards aggregated as a request asks, with standard deviations, and the members and columns it asks for.

    The values are raw rewards that were divided by the scale.
    """
    tokens, truncated = np.array(scored.tokens), np.array(scored.truncated)
    raw = ScoredSequences(columns[:, 0], tokens, truncated, columns, uncertainty)
    with np.errstate(over="ignore"):
        found = raw.aggregate(request.aggregate, request.k)
    if not np.isfinite(found.rewards).all():
        raise ServingError("invalid", "k: the conservative rewards are too large for float32. Lower it.", param="k")
    return replace(
        scored,
        rewards=_floats(found.rewards),
        stds=_floats(found.stds()) if raw.has_stds else [],
        value_stds=_floats(raw._replace(unit=scale).stds()) if raw.has_stds else [],
        members=[_floats(each) for each in uncertainty.members(columns)] if request.members else [],
        columns=[_floats(each) for each in columns] if request.columns else [],
    )


def _prefix_lengths(length: int, step: int) -> list[int]:
    """Return the lengths of the prefixes to score, of which the whole sequence is the last."""
    least = length**2 // (2 * _MOST_PREFIX_TOKENS) + 1
    if step < least:
        message = f"every: a sequence of {length:,} tokens has too many prefixes; expected {least} or more."
        raise ServingError("invalid", message, param="every")
    return [*range(step, length, step), length]


def _cancel_result(submitting: "Future[Future[Outcome]]") -> None:
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().cancel()


def load_in_passing_thread(load: Callable[[], ServedModel]) -> ServedModel:
    """Load a model in a thread that ends, so that the model's own thread is the only one that keeps helpers on a CPU.

    OpenMP gives each thread that runs torch a team of helpers for as long as that thread lives. Once all teams together
    have more threads than there are cores, helpers sleep at the end of each operation rather than spin, and a forward
    pass of a small model takes twice as long. So the main thread, which would load the model otherwise, runs no torch.

    Args:
        load: Loads the model and warms it up.
    """
    with ThreadPoolExecutor(1, "plaudit-loading") as thread:
        return thread.submit(load).result()


def _describe(name: str, reward_model: RewardModel) -> ModelInfo:
    config, uncertainty = reward_model.model.config, reward_model.uncertainty
    labels = getattr(config, "id2label", None) or {}
    scale = reward_model.scale
    return ModelInfo(
        name=name,
        weight_version=_weight_version(reward_model),
        created=int(time.time()),
        dtype=str(reward_model.model.dtype).removeprefix("torch."),
        max_length=reward_model.max_length,
        trained_on=reward_model.trained_on,
        has_chat_template=bool(reward_model.tokenizer.chat_template),
        label=str(labels.get(0, "LABEL_0")),
        temperature=reward_model.temperature,
        scale=scale if scale is not None and scale[1] > 0 else None,
        layout=reward_model.engine.layout,
        fingerprint=reward_model.fingerprint,
        uncertainty=None if uncertainty is None else uncertainty.to_dict(),
    )


def _weight_version(reward_model: RewardModel) -> str:
    """Return 16 hexadecimal digits that differ for other weights, and for the same ones with other constants."""
    version = reward_model.fingerprint or _folder_version(reward_model.name)
    if reward_model.uncertainty is None:
        return version
    constants = json.dumps(reward_model.uncertainty.to_dict(), sort_keys=True)
    return hashlib.sha256(f"{version} {constants}".encode()).hexdigest()[:16]


def _folder_version(name: str) -> str:
    """Return 16 hexadecimal digits that change when the weights in a folder are written anew."""
    patterns = ("*.safetensors", "ensemble.json") if Path(name).is_dir() else ()
    files = sorted(file for pattern in patterns for file in Path(name).glob(pattern))
    state = [name, *(f"{each.name} {each.stat().st_size} {each.stat().st_mtime_ns}" for each in files)]
    return hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]


def _floats(values: Sequence[np.float32] | NDArray[np.float32]) -> list[float]:
    """Return the shortest decimal of each float32."""
    return [float(str(value)) for value in values]
