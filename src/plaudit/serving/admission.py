"""`Admission`: budgets of items, tokens and bytes that wait, and the refusal of what would wait for too long."""

import math
from collections import Counter
from types import TracebackType

from plaudit.serving.scheduler import Step
from plaudit.serving.serving_errors import ServingError
from plaudit.serving.throughput import Throughput

__all__ = ["Admission", "Reservation"]

_TOKENS_PER_BYTE = 0.25  # before any request was tokenised
_REMEMBERED_BYTES = 1_000_000  # of recent bodies, over which tokens for a byte are averaged
_SAFE_SHARE = 0.8  # of the time to its deadline that a request may be expected to wait


class Reservation:
    """The share of the budgets that one request holds until its context ends."""

    def __init__(
        self, admission: "Admission", client: str, *, items: int, tokens: float, size: int, seconds: int
    ) -> None:
        self.client, self.items, self.tokens, self.size, self.seconds = client, items, tokens, size, seconds
        self.is_settled = False
        self._admission = admission

    def settle(self, tokens: int) -> None:
        """Replace the estimate by the number of tokens that the request has."""
        self._admission.settle(self, tokens)

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission.release(self)


class Admission:
    """Budgets of what may wait, reserved for a whole request at once.

    All methods but `record` are called from one thread.

    Args:
        max_items: The most items in the server.
        max_tokens: The most tokens, whole lengths summed.
        max_bytes: The most bytes of request bodies.
    """

    def __init__(self, *, max_items: int, max_tokens: int, max_bytes: int) -> None:
        self._items, self._size = 0, 0
        self._tokens: dict[str, float] = {}  # of each client, until its requests are answered
        self._unsettled = 0.0  # tokens of the requests that are not tokenised, by estimate
        self._requests: Counter[str] = Counter()  # of each client
        self._max_items, self._max_tokens, self._max_bytes = max_items, max_tokens, max_bytes
        self._deadlines: Counter[int] = Counter()  # requests by the whole seconds that they had to their deadline
        self._known_bytes, self._known_tokens = 0.0, 0.0
        self._throughput = Throughput()

    def reserve(self, *, client: str, items: int, size: int, seconds: float, queued_tokens: int = 0) -> Reservation:
        """Reserve the budgets for one request. A request that finds the server empty is always admitted.

        Args:
            client: Name of whoever is charged, the same as for `Scheduler.submit`.
            items: Number of items.
            size: Bytes of the body, from which its tokens are estimated.
            seconds: Time to its deadline.
            queued_tokens: Tokens of the sequences that wait for a step now.

        Raises:
            ServingError: "overloaded": a budget would be exceeded, or the wait would be too long.
        """
        tokens = size * self._tokens_per_byte()
        waiting = queued_tokens + self._unsettled
        if self._items:
            if self._is_full(items, tokens, size):
                raise self._refusal("the queue is full", queued_tokens)
            if self._is_late(client, tokens, seconds, waiting):
                raise self._refusal("the request would wait for longer than its deadline allows", queued_tokens)
        reservation = Reservation(self, client, items=items, tokens=tokens, size=size, seconds=int(seconds))
        self._requests[client] += 1
        self._deadlines[reservation.seconds] += 1
        self._add(client, items, tokens, size)
        self._unsettled += tokens
        return reservation

    def settle(self, reservation: Reservation, tokens: int) -> None:
        """Replace the estimated tokens of a reservation, and learn how many tokens a byte has."""
        self._add(reservation.client, 0, tokens - reservation.tokens, 0)
        self._unsettled -= reservation.tokens
        reservation.tokens, reservation.is_settled = tokens, True
        kept = math.exp(-reservation.size / _REMEMBERED_BYTES)
        self._known_bytes = self._known_bytes * kept + reservation.size
        self._known_tokens = self._known_tokens * kept + tokens

    def release(self, reservation: Reservation) -> None:
        """Give everything back that a reservation holds."""
        self._add(reservation.client, -reservation.items, -reservation.tokens, -reservation.size)
        if not reservation.is_settled:
            self._unsettled -= reservation.tokens
        self._requests[reservation.client] -= 1
        if not self._requests[reservation.client]:
            del self._requests[reservation.client], self._tokens[reservation.client]
        self._deadlines[reservation.seconds] -= 1
        if not self._deadlines[reservation.seconds]:
            del self._deadlines[reservation.seconds]

    def record(self, step: Step) -> None:
        """Note the speed of a full step; called from the threads of engines."""
        if step.is_full:
            self._throughput.record(step.tokens, step.seconds)

    def estimated_wait(self, queued_tokens: int = 0) -> float:
        """Return the seconds until all that waits now has run; 0 before any step was measured.

        Args:
            queued_tokens: Tokens of the sequences that wait for a step now.
        """
        return (queued_tokens + self._unsettled) * self._throughput.seconds_per_token

    def _is_late(self, client: str, tokens: float, seconds: float, waiting: float) -> bool:
        """Return whether a request would be late, or make others late.

        A client waits for as many tokens of each other client as it has itself. To let it go before others must leave
        them time: the whole queue has to fit into the longest of the deadlines. Beside what waits, time is left for the
        step that runs and for the others in the step of the request, since rewards come at the end of a step.
        """
        reserved = sum(self._tokens.values())
        share = min(waiting / reserved, 1.0) if reserved else 0.0  # of a batch that is being answered, the rest waits
        own = share * self._tokens.get(client, 0.0) + tokens
        others = sum(min(share * held, own) for name, held in self._tokens.items() if name != client)
        longest = max(seconds, max(self._deadlines, default=0))
        second = self._throughput.seconds_per_token
        steps = 2 * min(self._throughput.seconds_per_step, (reserved + tokens) * second)
        return (own + others) * second + steps > _SAFE_SHARE * seconds or (
            waiting + tokens
        ) * second + steps > _SAFE_SHARE * longest

    def _tokens_per_byte(self) -> float:
        return self._known_tokens / self._known_bytes if self._known_bytes else _TOKENS_PER_BYTE

    def _is_full(self, items: int, tokens: float, size: int) -> bool:
        return (
            self._items + items > self._max_items
            or sum(self._tokens.values()) + tokens > self._max_tokens
            or self._size + size > self._max_bytes
        )

    def _add(self, client: str, items: int, tokens: float, size: int) -> None:
        self._items, self._size = self._items + items, self._size + size
        self._tokens[client] = self._tokens.get(client, 0.0) + tokens

    def _refusal(self, reason: str, queued_tokens: int) -> ServingError:
        """Return the error that asks the client to come back when about half of what waits now has run."""
        retry_after = min(max(math.ceil(self.estimated_wait(queued_tokens) / 2), 1), 60)
        return ServingError("overloaded", f"{reason}: try again in {retry_after} s", retry_after=retry_after)
