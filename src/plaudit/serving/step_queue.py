"""`StepQueue`: sequences that wait for the engine, and the choice of those that run together in the next step.

A step is one forward pass, so its size is counted as the engine counts it: tokens of a forest, with the prefixes that
sequences share counted once. Sequences wait in the order of their token ids: those with a common prefix are neighbours,
whichever request or client they came from. The queue knows no thread, no clock and no engine.

Clients are served by start-time fair queueing (Goyal, Vin and Cheng, 1996): each has a virtual time, the tokens that
ran for it, and the one with the least goes first.
"""

import heapq
from bisect import bisect_left, insort
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np

from plaudit.forest.trie import SHARED_TOKENS, common_tokens
from plaudit.serving.submission import QueuedSequence, Submission

__all__ = ["StepQueue"]

_order = attrgetter("order")
_FEW = 8  # sequences that are inserted one by one; a sort of the whole queue is faster for more
_EMPTY_ROOM = 16  # tokens of room that cost as much as one repeated token: a step has a fixed cost besides its tokens


@dataclass(eq=False, slots=True)
class _Client:
    """The sequences of one client by deadline, then age. The heap may hold sequences that wait no more."""

    number: int
    virtual_time: float
    waiting: int = 0
    heap: list[tuple[float, int, QueuedSequence]] = field(default_factory=list)

    def first(self) -> QueuedSequence | None:
        """Return the waiting sequence with the earliest deadline."""
        while self.heap and not _is_alive(self.heap[0][2]):
            heapq.heappop(self.heap)
        return self.heap[0][2] if self.heap else None

    def forget_old(self) -> None:
        """Release the memory of sequences that wait no more, where they are many."""
        if len(self.heap) > 2 * self.waiting + 64:
            self.heap = [entry for entry in self.heap if _is_alive(entry[2])]
            heapq.heapify(self.heap)


class StepQueue:
    """Sequences that wait, in the order of their token ids.

    Attributes:
        items: Number of waiting sequences.
        tokens: Their tokens, whole lengths summed.
    """

    def __init__(self) -> None:
        self.items, self.tokens = 0, 0
        self._sequences: list[QueuedSequence] = []
        self._clients: dict[str, _Client] = {}
        self._virtual_time = 0.0  # of the client that was served last
        self._has_discarded = False
        self._arrivals = 0

    def add(self, submission: Submission, sequences: list[QueuedSequence]) -> None:
        """Add the sequences of a new submission, in their order."""
        client = self._clients.get(submission.client)
        if client is None:
            client = self._clients[submission.client] = _Client(self._arrivals, self._virtual_time)
            self._arrivals += 1
        if not client.waiting:  # it has no claim on the time in which it asked for nothing
            client.virtual_time = max(client.virtual_time, self._virtual_time)
        for sequence in sequences:
            heapq.heappush(client.heap, (submission.deadline, sequence.order[1], sequence))
        if len(sequences) <= _FEW:
            for sequence in sequences:
                insort(self._sequences, sequence, key=_order)
        else:
            self._sequences.extend(sequences)
            self._sequences.sort(key=_order)
        tokens = sum(map(len, sequences))
        submission.waiting, submission.waiting_tokens = len(sequences), tokens
        self._count(client, len(sequences), tokens)

    def discard(self, submission: Submission) -> None:
        """Take what still waits of a submission out of the queue."""
        if submission.waiting:
            self._count(self._clients[submission.client], -submission.waiting, -submission.waiting_tokens)
            submission.waiting = submission.waiting_tokens = 0
            submission.is_discarded = self._has_discarded = True
        if not self.items:
            self._clear()

    def expire(self, now: float) -> list[Submission]:
        """Discard the submissions whose deadline has passed, and return them."""
        late = []
        for client in list(self._clients.values()):
            while (sequence := client.first()) is not None and sequence.submission.deadline <= now:
                late.append(sequence.submission)
                self.discard(sequence.submission)
        return late

    def next_step(self, max_tokens: int, layout: str) -> list[QueuedSequence]:
        """Remove and return the sequences of the next step; none if the queue is empty.

        Args:
            max_tokens: The most distinct tokens of the step, or positions if the layout is "padded". A longer sequence
                runs alone.
            layout: Layout of the engine's batches. Prefixes are shared in "forest" only.
        """
        if self._has_discarded:
            self._sequences = [sequence for sequence in self._sequences if _is_alive(sequence)]
            self._has_discarded = False
        choice = _Choice(self._sequences, self._clients, max_tokens, layout)
        choice.fill()
        self._virtual_time = max(self._virtual_time, choice.virtual_time)
        step = [self._sequences[position] for position in choice.chosen]
        for position in sorted(choice.chosen, reverse=True):
            del self._sequences[position]
        for sequence in step:
            submission = sequence.submission
            submission.waiting -= 1
            submission.waiting_tokens -= len(sequence)
            self.items -= 1
            self.tokens -= len(sequence)
        self._forget_clients()
        return step

    def _count(self, client: _Client, items: int, tokens: int) -> None:
        client.waiting += items
        self.items += items
        self.tokens += tokens

    def _forget_clients(self) -> None:
        """Release what is known of clients that wait for nothing and have no lead over the others."""
        if not self.items:
            self._clear()
        for name, client in list(self._clients.items()):
            client.forget_old()
            if not client.waiting and client.virtual_time <= self._virtual_time:
                del self._clients[name]

    def _clear(self) -> None:
        self._sequences, self._clients, self._has_discarded = [], {}, False


class _Choice:
    """The choice of one step: positions in the queue, in the order in which they were taken.

    An anchor is taken first, by fairness and deadline, then the sequences on both sides that share its prefix, the
    longest prefix first; then the next anchor, until the step is full.
    """

    def __init__(
        self, sequences: list[QueuedSequence], clients: dict[str, _Client], max_tokens: int, layout: str
    ) -> None:
        self.chosen: list[int] = []
        self.virtual_time = 0.0
        self._sequences, self._clients = sequences, clients
        self._max_tokens, self._layout = max_tokens, layout
        self._sorted: list[int] = []  # the chosen positions in ascending order
        self._known: dict[tuple[int, int], int] = {}  # shared tokens of pairs of positions
        self._tokens, self._longest = 0, 0
        self._links: list[int] = []  # tokens that each chosen sequence shares with those of its group before it
        self._by_service = [(client.virtual_time, client.number, client) for client in clients.values()]
        heapq.heapify(self._by_service)

    def fill(self) -> None:
        """Take anchors and their neighbours until the step is full or nothing waits."""
        while (client := self._least_served()) is not None and (anchor := client.first()) is not None:
            self.virtual_time = client.virtual_time
            start = len(self.chosen)
            overflow = self._take_group(bisect_left(self._sequences, anchor.order, key=_order))
            if overflow is not None:
                self._retreat(start, overflow)
                return

    def _take_group(self, anchor: int) -> int | None:
        """Take the anchor and its neighbours. Return the shared tokens of the first one that does not fit, if any."""
        shared = self._shared_tokens(anchor)
        if not self._take(anchor, shared):
            return shared
        if self._layout != "forest":
            return None
        sides = {-1: self._neighbour(anchor, -1), 1: self._neighbour(anchor, 1)}
        while True:
            side = max(sides, key=sides.__getitem__)
            shared, position = sides[side]
            if not shared:
                return None
            if not self._take(position, shared):
                return shared
            sides[side] = self._neighbour(position, side)

    def _neighbour(self, edge: int, side: int) -> tuple[int, int]:
        """Return the next sequence on one side of a group, as the tokens it shares with the edge and its position.

        Zeros stand for none: the queue ends, no prefix is shared, or the client has had its share.
        """
        position = edge + side
        while 0 <= position < len(self._sequences) and not self._sequences[position].is_waiting:
            position += side
        if not 0 <= position < len(self._sequences):
            return 0, 0
        client, least = self._clients[self._sequences[position].submission.client], self._least_served()
        # Neighbours of another client's anchor may belong to one that has had its share. Half of a step is left to the
        # clients that have not.
        if least is not None and client.virtual_time - least.virtual_time > self._max_tokens / 2:
            return 0, 0
        return self._common_tokens(edge, position), position

    def _common_tokens(self, first: int, second: int) -> int:
        """Return the tokens that two sequences share, as the engine counts them."""
        pair = (first, second) if first < second else (second, first)
        if pair not in self._known:
            # Equality does not depend on the order of the bytes, and the machine's own is faster.
            one, other = (self._sequences[position].ids.view(np.uint32) for position in pair)
            shared = common_tokens(one, other)
            self._known[pair] = shared if shared >= SHARED_TOKENS else 0
        return self._known[pair]

    def _shared_tokens(self, position: int) -> int:
        """Return the tokens that a sequence shares with the chosen ones."""
        if self._layout != "forest":
            return 0
        place = bisect_left(self._sorted, position)
        neighbours = self._sorted[max(place - 1, 0) : place + 1]
        return max((self._common_tokens(other, position) for other in neighbours), default=0)

    def _take(self, position: int, link: int) -> bool:
        """Take a sequence if it fits, and charge its client.

        Args:
            position: Position in the queue.
            link: Tokens that it shares with those of its group that were taken before.
        """
        sequence = self._sequences[position]
        new_tokens = len(sequence) - self._shared_tokens(position)
        longest = max(self._longest, len(sequence))
        size = (len(self.chosen) + 1) * longest if self._layout == "padded" else self._tokens + new_tokens
        if self.chosen and size > self._max_tokens:
            return False
        insort(self._sorted, position)
        self.chosen.append(position)
        self._links.append(link)
        self._tokens, self._longest = self._tokens + new_tokens, longest
        sequence.is_waiting, sequence.new_tokens = False, new_tokens
        client = self._clients[sequence.submission.client]
        client.waiting -= 1
        client.virtual_time += new_tokens
        return True

    def _retreat(self, start: int, overflow: int) -> None:
        """Put the end of the last group back where the best place to end the step is before it.

        To end the step before a sequence repeats the prefix that it shares with those before it, and leaves room empty.

        Args:
            start: Number of sequences that were chosen before the last group.
            overflow: Tokens that the sequence that did not fit shares with its group.
        """
        end, tokens = len(self.chosen), self._tokens
        best, least = end, overflow + (self._max_tokens - tokens) / _EMPTY_ROOM
        while end > start:
            end -= 1
            tokens -= self._sequences[self.chosen[end]].new_tokens
            cost = self._links[end] + (self._max_tokens - tokens) / _EMPTY_ROOM
            if 2 * tokens >= self._max_tokens and cost < least:
                best, least = end, cost
        for position in self.chosen[best:]:
            sequence = self._sequences[position]
            client = self._clients[sequence.submission.client]
            sequence.is_waiting = True
            client.waiting += 1
            client.virtual_time -= sequence.new_tokens
        del self.chosen[best:]

    def _least_served(self) -> _Client | None:
        """Return the waiting client with the least virtual time."""
        while self._by_service:
            virtual_time, number, client = self._by_service[0]
            if not client.waiting:
                heapq.heappop(self._by_service)
            elif virtual_time < client.virtual_time:
                heapq.heapreplace(self._by_service, (client.virtual_time, number, client))
            else:
                return client
        return None


def _is_alive(sequence: QueuedSequence) -> bool:
    return sequence.is_waiting and not sequence.submission.is_discarded
