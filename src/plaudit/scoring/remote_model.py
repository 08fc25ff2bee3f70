"""`RemoteRewardModel`: a reward model behind `plaudit serve`, with the methods of one in this process."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from plaudit.data.formats import TextOrChat, read_sequence
from plaudit.errors import ConfigError, DataError, ModelError, ServerError
from plaudit.scoring.base_reward_model import (
    BaseRewardModel,
    ChunkScoring,
    ScoredSequences,
    join_scored,
    logger,
)
from plaudit.scoring.server_connection import ServerConnection
from plaudit.uncertainty import Uncertainty, uncertainty_from_dict

__all__ = ["RemoteRewardModel"]

_REQUESTS_IN_FLIGHT = 4  # so that the server has the next sequences before it has scored the last
_MOST_BYTES = 4 * 2**20  # of the items of a request; servers bound their bodies
_TEMPLATE_WORDS = ("<|", "<\uff5c", "<start_of_turn>", "[INST]")  # by which a text is taken for a rendered conversation


class RemoteRewardModel(BaseRewardModel):
    """A reward model behind `plaudit serve`; `score`, `stream` and `rank` are those of `RewardModel`.

    A server that is busy or restarting is asked again until `timeout`; what fails in the end is an error, and never a
    reward that is missing. Threads may share a model. It can be pickled: each process opens connections of its own.

    Args:
        url: Address of the server, such as "http://127.0.0.1:8000", perhaps with a path before that of the API.
        key: Key for the server; that of the environment variable PLAUDIT_API_KEY if `None`. A key that is given is
            pickled with the model, since worker processes need it; it is never printed.
        model: Name of one of the server's models; its first model if `None`.
        timeout: Seconds for one request of at most `batch_items` sequences, all its tries and waits included.
        retries: How many times a request is tried again after a failed connection or the status 429, 502, 503 or 504.
        batch_items: Most sequences of a request, where the server does not take fewer. Four requests are under way at
            once.
        overlong: "truncate" has the server cut a longer sequence from the left; "error" raises.
        only_version: The version of the weights whose rewards are accepted; any if `None`.

    Attributes:
        name: The name of the model if one was given, else the address of the server.
        weight_version: Version of the weights in the last answer; `None` before the first.
        trained_on: "texts" or "conversations", if the server says so, once something was scored: a sequence of the
            other form brings one warning.

    Raises:
        ConfigError: An argument cannot be used. The server is not asked yet.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        model: str | None = None,
        timeout: float = 110.0,
        retries: int = 100,
        batch_items: int = 256,
        overlong: str = "truncate",
        only_version: str | None = None,
    ) -> None:
        if batch_items < 1:
            raise ConfigError(f"batch_items: expected a whole number above 0, got {batch_items!r}.")
        if overlong not in ("truncate", "error"):
            raise ConfigError(f"overlong: expected one of truncate, error, got {overlong!r}.")
        self._connection = ServerConnection(url, key, timeout=timeout, retries=retries)
        self._model_name, self.batch_items, self.overlong = model, batch_items, overlong
        self.only_version = only_version
        self.name = model or self.url
        self.weight_version: str | None = None
        self._knows_server = False

    def __repr__(self) -> str:
        return f"RemoteRewardModel({self.url!r})"

    @property
    def url(self) -> str:
        """The address of the server."""
        return self._connection.url

    @property
    def fingerprint(self) -> str | None:
        """Digest of the fingerprint that was saved with the model, as the server tells it."""
        return self.info().get("fingerprint")

    @property
    def uncertainty(self) -> Uncertainty | None:  # type: ignore[override]  # asked of the server, whose weights change
        """The uncertainty of the model, as the server tells it now; `None` for a single model."""
        return _uncertainty_of(self.info())

    def info(self) -> dict[str, Any]:
        """Return the properties of the model that the server gives out.

        Raises:
            ConfigError: The server has no model of this name, or refuses the key.
            ServerError: The server cannot be reached, or is no server of Plaudit.
        """
        return self._described(self._connection.get("/info"))

    def _described(self, info: dict[str, Any]) -> dict[str, Any]:
        """Return the properties of the model among all that the server gives out."""
        models = info.get("models")
        if not isinstance(models, list) or not models or not all(isinstance(each, dict) for each in models):
            raise ServerError(f"{self.url}/info names no models. Is this the address of a `plaudit serve`?")
        for each in models:
            if self._model_name in (None, each.get("name")) or len(models) == 1:
                return each
        names = ", ".join(str(each.get("name")) for each in models)
        raise ConfigError(f"model: expected one of those at {self.url}, {names}, got {self._model_name!r}.")

    def describe(self, sequence: TextOrChat) -> dict[str, Any]:  # noqa: ARG002  # as that of `RewardModel`
        """Return the properties that decide the rewards, in JSON values, for the header of a score file.

        Args:
            sequence: A text or conversation of the kind that is scored; a server tells the same of both.
        """
        info = self.info()
        known = ("fingerprint", "weight_version", "dtype", "layout", "max_length")
        return {"model": info.get("name"), "server": self.url} | {name: info.get(name) for name in known}

    def _saved_temperature(self) -> float:
        temperature = self.info().get("temperature")
        if temperature is None:
            raise ConfigError(
                f"calibrated: the model at {self.url} was saved without a temperature. `plaudit eval MODEL DATA "
                "--save_temperature` fits one and writes it into its reward.json; or leave `calibrated` out."
            )
        return float(temperature)

    def begin_call(self, normalize: bool) -> ChunkScoring:
        """Return a function that scores the chunks of one call of `score` or `stream`, in their order.

        Args:
            normalize: Subtract the mean and divide by the standard deviation that were saved with the model.
        """
        return self._begin_call(normalize, {})

    def begin_call_with_uncertainty(self, normalize: bool) -> tuple[Uncertainty | None, ChunkScoring]:
        """Return the uncertainty of the model, and a function as of `begin_call`, whose results have its columns.

        The server is asked once. An answer of other weights than those of the uncertainty is an error.

        Args:
            normalize: Subtract the mean and divide by the standard deviation that were saved with the model.
        """
        described = self._ask_server()
        return _uncertainty_of(described), self._begin_call(normalize, described)

    def _begin_call(self, normalize: bool, described: dict[str, Any]) -> ChunkScoring:
        """Return the function that scores chunks; with an uncertainty in the description, by these weights alone."""
        uncertainty = _uncertainty_of(described)
        needed = None if uncertainty is None else described.get("weight_version")
        unit = described["scale"][1] if normalize and described.get("scale") else 1.0
        previous: str | None = None

        def score_chunk(
            sequences: list[TextOrChat],
            options: list[dict[str, Any]] | None,
            names: list[str],
            on_scored: Callable[[int], object],
        ) -> ScoredSequences:
            nonlocal previous
            if not self._knows_server:
                self._ask_server()
            flags = {"normalize": normalize, "columns": uncertainty is not None}
            requests = list(self._requests(sequences, options, names, flags))
            self._warn_of_other_form(sequences, names, lambda index: _is_rendered(sequences[index]))
            parts = []
            for request, answer in zip(requests, self._send(requests), strict=True):
                version = str(answer.get("weight_version"))
                self._check_version(version, previous, needed)
                self.weight_version = previous = version
                parts.append(self._read(answer, request.names, uncertainty)._replace(unit=unit))
                on_scored(len(request.places))
            scored = join_scored(parts).take(np.argsort([place for each in requests for place in each.places]))
            self.truncated += int(scored.truncated.sum())
            return scored

        return score_chunk

    def _ask_server(self) -> dict[str, Any]:
        """Return the properties of the model, after a note of the form of training and the server's bound on items."""
        info = self._connection.get("/info")
        described = self._described(info)
        self.trained_on = described.get("trained_on")
        most_items = (info.get("limits") or {}).get("max_items")
        self.batch_items = min(self.batch_items, most_items or self.batch_items)
        self._knows_server = True
        return described

    def _requests(
        self,
        sequences: list[TextOrChat],
        options: list[dict[str, Any]] | None,
        names: list[str],
        flags: dict[str, bool],
    ) -> Iterator["_Request"]:
        """Yield the requests for some sequences; those with a common prompt stand side by side, to be run together."""
        items = [_item(sequence, name) for sequence, name in zip(sequences, names, strict=True)]
        templates = [_json(each, name) for each, name in zip(options or [{}] * len(items), names, strict=True)]
        order = sorted(range(len(items)), key=lambda place: (templates[place], items[place]))
        for template, group in groupby(order, key=templates.__getitem__):
            truncation = "left" if self.overlong == "truncate" else "error"
            fields: dict[str, Any] = {"truncation": truncation}
            fields |= {name: True for name, is_set in flags.items() if is_set}
            fields |= {} if self._model_name is None else {"model": self._model_name}
            head = json.dumps(fields).encode()[:-1] + b', "template_kwargs": ' + template + b', "items": ['
            for places in _split(list(group), items, self.batch_items):
                body = head + b", ".join(items[place] for place in places) + b"]}"
                yield _Request(places, [names[place] for place in places], body)

    def _send(self, requests: list["_Request"]) -> Iterator[dict[str, Any]]:
        def answer(request: _Request) -> dict[str, Any]:
            return self._connection.post("/v1/rewards", request.body, request.names)

        if len(requests) == 1:
            yield answer(requests[0])
            return
        with ThreadPoolExecutor(_REQUESTS_IN_FLIGHT, "rewards") as pool:
            yield from pool.map(answer, requests)

    def _read(self, answer: dict[str, Any], names: list[str], uncertainty: Uncertainty | None) -> ScoredSequences:
        """Return the checked rewards and columns of an answer for sequences with these names."""
        count = len(names)
        lists: list[Any] = [answer.get(name) for name in ("rewards", "tokens", "truncated")]
        for values in lists:
            if not isinstance(values, list) or len(values) != count or not all(map(_is_number, values)):
                raise ServerError(f"{self.url}: expected {count} numbers, got {values!r:.80}.")
        num_columns = 1 if uncertainty is None else uncertainty.num_columns
        try:
            with np.errstate(over="ignore"):
                rewards = np.array(lists[0], np.float32)
                columns = np.array(lists[0] if uncertainty is None else answer.get("columns"), np.float32)
                columns = columns.reshape(count, num_columns)
        except (TypeError, ValueError) as error:
            expected = f"{count} lists of {num_columns} numbers as columns"
            raise ServerError(f"{self.url}: expected {expected} ({error}).") from error
        for place in np.flatnonzero(~(np.isfinite(rewards) & np.isfinite(columns).all(1)))[:1].tolist():
            raise ModelError(f"{names[place]}: expected a finite reward from {self.url}, got {lists[0][place]}.")
        tokens, truncated = np.array(lists[1], np.int64), np.array(lists[2], np.bool_)
        return ScoredSequences(rewards, tokens, truncated, columns, uncertainty)

    def _check_version(self, version: str, previous: str | None, needed: str | None) -> None:
        """Refuse rewards of other weights than the accepted ones, and warn of two versions in one call."""
        if self.only_version not in (None, version):
            raise ConfigError(
                f"the weights at {self.url} were {self.only_version}, and are {version} now: their rewards must not be "
                "mixed. Serve the earlier weights again, or score all rows anew."
            )
        if needed not in (None, version):
            raise ServerError(
                f"the weights at {self.url} changed during a call, from {needed} to {version}, and with them the "
                "constants that compare members. Call again."
            )
        if previous not in (None, version):
            logger.warning(
                "The weights at %s changed during a call: some of its rewards are of version %s, some of version %s",
                self.url, previous, version,
            )  # fmt: skip


@dataclass(frozen=True)
class _Request:
    """A part of a chunk: the places of its sequences there, their names for error messages, and the body to send."""

    places: list[int]
    names: list[str]
    body: bytes


def _uncertainty_of(described: dict[str, Any]) -> Uncertainty | None:
    constants = described.get("uncertainty")
    return None if constants is None else uncertainty_from_dict(constants)


def _item(sequence: Any, name: str) -> bytes:
    read = read_sequence(sequence, name)
    return _json({"text": read} if isinstance(read, str) else {"messages": read}, name)


def _json(value: Any, name: str) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{name}: expected text, got half of a character ({error.object[error.start]!r}), which no tokenizer "
            "takes. Remove it, or write '?' for it."
        ) from error
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: expected values that JSON can hold, to be sent to a server ({error}).") from error


def _split(places: list[int], items: list[bytes], most_items: int) -> Iterator[list[int]]:
    """Split places into parts that fit into a request each; an item that is too large stands alone."""
    part: list[int] = []
    size = 0
    for place in places:
        if part and (len(part) == most_items or size + len(items[place]) > _MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(place)
        size += len(items[place])
    yield part


def _is_rendered(sequence: Any) -> bool:
    return isinstance(sequence, str) and any(word in sequence for word in _TEMPLATE_WORDS)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
