"""`StepQueue`: which sequences run together in a step."""

import itertools
from collections import Counter

import numpy as np
import pytest

from plaudit.forest.trie import TokenForest
from plaudit.serving.step_queue import StepQueue
from plaudit.serving.submission import Submission

FAR = 1e9  # a deadline that no test reaches


def some_ids(length, seed):
    return np.random.default_rng(seed).integers(0, 50_000, length)


def siblings(count, *, prompt=100, response=50, seed=0):
    """Sequences that share a prompt and nothing else."""
    start = some_ids(prompt, seed)
    return [np.concatenate([start, some_ids(response, [seed, number])]) for number in range(count)]


def add(queue, sequences, client="a client", deadline=FAR):
    submission, queued = Submission.of(list(sequences), client, deadline)
    queue.add(submission, queued)
    return submission


def run(queue, max_tokens=1_000, layout="forest"):
    """All steps until the queue is empty."""
    steps = []
    while queue.items:
        steps.append(queue.next_step(max_tokens, layout))
    return steps


def distinct_tokens(sequences):
    """The tokens that the engine runs for one batch."""
    return len(TokenForest.from_sequences([each.ids for each in sequences], range(len(sequences))))


def clients(step):
    return Counter(each.submission.client for each in step)


def test_each_sequence_runs_once():
    queue, sequences = StepQueue(), [*siblings(20), *siblings(3, seed=1), some_ids(5, 9), some_ids(5, 9)]
    submission = add(queue, sequences)
    ran = [each for step in run(queue) for each in step]
    assert sorted(each.index for each in ran) == list(range(len(sequences)))
    assert all(each.ids.tolist() == sequences[each.index].tolist() for each in ran)
    assert (queue.items, queue.tokens, submission.waiting, submission.waiting_tokens) == (0, 0, 0, 0)


def test_items_and_tokens_are_those_that_wait():
    queue = StepQueue()
    for length in (300, 600, 700):
        add(queue, [some_ids(length, length)])
    assert (queue.items, queue.tokens) == (3, 1_600)
    queue.next_step(1_000, "forest")
    assert (queue.items, queue.tokens) == (1, 700)


@pytest.mark.parametrize("seed", range(20))
def test_a_step_counts_tokens_as_the_engine_does(seed):
    """Prefixes shorter than the least that the engine shares count twice, nested ones once."""
    rng, queue = np.random.default_rng(seed), StepQueue()
    roots = [some_ids(length, length) for length in (10, 31, 32, 33, 200)]
    for number in range(60):
        root = roots[rng.integers(len(roots))][: rng.integers(1, 201)]
        add(queue, [np.concatenate([root, some_ids(int(rng.integers(0, 80)), [seed, number])])], f"client {number % 3}")
    for step in run(queue, 700):
        assert sum(each.new_tokens for each in step) == distinct_tokens(step)
        assert distinct_tokens(step) <= 700


def test_siblings_run_together_whichever_client_and_request_they_came_from():
    queue, prompts = StepQueue(), [siblings(8, seed=seed) for seed in range(10)]
    for number in range(8):  # each client sends one sibling of each prompt
        for prompt in prompts:
            add(queue, [prompt[number]], f"client {number}")
    steps = run(queue, 1_100)  # room for two prompts
    assert sum(map(distinct_tokens, steps)) == 10 * (100 + 8 * 50)


def test_a_group_of_siblings_that_does_not_fit_waits_for_the_next_step():
    queue = StepQueue()
    for seed in range(3):
        add(queue, siblings(10, seed=seed))  # 600 distinct tokens each
    assert [len(step) for step in run(queue, 1_000)] == [10, 10, 10]


def test_a_group_is_cut_where_the_least_prefix_is_shared():
    """Under one system prompt all sequences are neighbours; a cut between prompts repeats the system prompt alone."""
    system = some_ids(50, 99)
    queue = StepQueue()
    for seed in range(6):
        add(queue, [np.concatenate([system, each]) for each in siblings(10, seed=seed)])
    steps = run(queue, 1_500)  # 650 distinct tokens for one prompt, 600 for each further one
    assert [len(step) for step in steps] == [20, 20, 20]
    assert sum(map(distinct_tokens, steps)) == 6 * 600 + 3 * 50


def test_a_group_bigger_than_a_step_is_cut():
    queue = StepQueue()
    add(queue, siblings(100))
    assert all(700 < distinct_tokens(step) <= 1_000 for step in run(queue)[:-1])


def test_a_sequence_longer_than_a_step_runs_alone():
    queue = StepQueue()
    add(queue, [some_ids(5_000, 0), some_ids(10, 1), some_ids(10, 2)])
    assert sorted(sorted(map(len, step)) for step in run(queue)) == [[10, 10], [5_000]]


def test_positions_bound_a_padded_step():
    queue = StepQueue()
    add(queue, [some_ids(length, length) for length in (400, 390, 30, 20, 300, 310)])
    for step in run(queue, layout="padded"):
        assert len(step) * max(map(len, step)) <= 1_000


def test_whole_lengths_bound_a_step_of_sequences_that_run_alone():
    queue = StepQueue()
    add(queue, siblings(20))
    assert all(sum(map(len, step)) <= 1_000 for step in run(queue, layout="alone"))


def test_the_earliest_deadline_of_a_client_runs_first():
    queue = StepQueue()
    for deadline in (30.0, 10.0, 20.0):
        add(queue, [some_ids(900, int(deadline))], deadline=deadline)
    assert [step[0].submission.deadline for step in run(queue)] == [10.0, 20.0, 30.0]


@pytest.mark.parametrize("system", [0, 60], ids=["apart", "under one system prompt"])
def test_light_clients_beside_a_greedy_one_run_within_the_next_step(system):
    """The running step is the first of the two that a light item may wait for."""
    queue, shared = StepQueue(), some_ids(system, 99)
    add(queue, [np.concatenate([shared, each]) for each in siblings(2_000, prompt=40, seed=1)], "greedy")
    numbers = itertools.count()
    for _ in range(10):
        for light in range(10):
            add(queue, [np.concatenate([shared, some_ids(90, [7, next(numbers)])])], f"light {light}")
        step = queue.next_step(4_000, "forest")
        assert clients(step) == {"greedy": clients(step)["greedy"]} | {f"light {light}": 1 for light in range(10)}
        assert distinct_tokens(step) > 3_900


def test_two_greedy_clients_get_equal_shares_of_the_tokens():
    queue = StepQueue()
    add(queue, [some_ids(100, [0, number]) for number in range(400)], "short sequences")
    add(queue, [some_ids(400, [1, number]) for number in range(100)], "long sequences")
    tokens = Counter()
    for _ in range(20):
        for each in queue.next_step(1_600, "forest"):
            tokens[each.submission.client] += len(each)
    assert abs(tokens["short sequences"] - tokens["long sequences"]) <= 800


def test_a_client_saves_no_claim_while_it_asks_for_nothing():
    queue = StepQueue()
    add(queue, [some_ids(400, [0, number]) for number in range(100)], "steady")
    for _ in range(20):
        queue.next_step(1_600, "forest")
    add(queue, [some_ids(400, [1, number]) for number in range(100)], "new")
    ran = sum((clients(queue.next_step(1_600, "forest")) for _ in range(4)), Counter())
    assert ran == {"steady": 8, "new": 8}


def test_what_is_discarded_does_not_run():
    queue = StepQueue()
    kept, gone = add(queue, siblings(5)), add(queue, siblings(50, seed=1))
    queue.next_step(200, "forest")
    queue.discard(gone)
    assert queue.items == kept.waiting
    assert {each.submission for step in run(queue) for each in step} == {kept}
    queue.discard(gone)  # nothing is left to discard
    assert (queue.items, queue.tokens) == (0, 0)


def test_submissions_past_their_deadline_are_discarded_whole():
    queue = StepQueue()
    late, in_time = add(queue, siblings(5), deadline=10.0), add(queue, siblings(5, seed=1), deadline=11.0)
    assert queue.expire(9.0) == []
    assert queue.expire(10.0) == [late]
    assert queue.items == in_time.waiting == 5


@pytest.mark.parametrize(("prompt", "response", "system"), [(100, 100, 0), (400, 400, 0), (100, 300, 500)], ids=str)
def test_single_requests_run_at_most_1_15_times_the_distinct_tokens_of_the_ideal(prompt, response, system):
    """100 prompts x 16 siblings, one a request, from 64 clients that send the next as soon as they have an answer.

    The answers to a step arrive one after another, so each step starts with a quarter of the clients back.
    """
    shared, queue = some_ids(system, 99), StepQueue()
    samples = [
        np.concatenate([shared, each])
        for seed in range(100)
        for each in siblings(16, prompt=prompt, response=response, seed=seed)
    ]
    ideal = len(TokenForest.from_sequences(samples, range(len(samples))))
    waiting = iter(samples)
    idle, ran = [f"client {number}" for number in range(64)], 0
    while True:
        returned, idle = idle[: max(len(idle) // 4, 1)], idle[max(len(idle) // 4, 1) :]
        for client, sample in zip(returned, waiting, strict=False):
            add(queue, [sample], client)
        if not queue.items:
            break
        step = queue.next_step(16_384, "forest")
        ran += sum(each.new_tokens for each in step)
        for client, sample in zip(idle, waiting, strict=False):  # while the step ran
            add(queue, [sample], client)
        idle = [each.submission.client for each in step]
    assert ran <= 1.15 * ideal
