"""`Scheduler`: rewards reach whoever asked, failures only those who caused them."""

import asyncio
import logging
import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch

from plaudit.errors import ModelError
from plaudit.serving.scheduler import Scheduler
from plaudit.serving.serving_errors import ServingError

WAIT = 30  # seconds after which a test gives up
POISON, NAN, NAN_BESIDE, HALF_SENT = 66_666, 77_777, 77_778, 88_888  # token ids on which the engine below fails


class Engine:
    """The reward of a sequence is its last token id, with half of it as a second column.

    Each call waits until the test lets it go on.
    """

    num_columns = 2

    def __init__(self, *, is_open=True, layout="forest", max_tokens_per_batch=1_000):
        self.layout, self.max_tokens_per_batch = layout, max_tokens_per_batch
        self.calls = []
        self.entered, self.gate = threading.Semaphore(0), threading.Event()
        if is_open:
            self.gate.set()

    def score_columns(self, sequences):
        self.calls.append([np.asarray(ids, dtype=np.int64).tolist() for ids in sequences])
        self.entered.release()
        assert self.gate.wait(WAIT)
        rewards = np.array([ids[-1] for ids in sequences], dtype=np.float32)
        if any(POISON in ids for ids in sequences):
            raise ModelError(f"cannot score {POISON}")
        columns = np.stack([rewards, rewards / 2], axis=1)
        for number, bad in enumerate((NAN, NAN_BESIDE)):
            columns[[bad in ids for ids in sequences], number] = np.nan
        return columns[:-1] if any(HALF_SENT in ids for ids in sequences) else columns


@pytest.fixture
def serve():
    """Start a scheduler on an engine; all of them end with the test."""
    started = []

    def start(engine, **options):
        scheduler = Scheduler(engine, **options)
        scheduler.start()
        started.append((engine, scheduler))
        return scheduler

    yield start
    for engine, scheduler in started:
        engine.gate.set()
        scheduler.stop()
        assert scheduler.join(WAIT)


def ids(*numbers):
    return np.array(numbers, dtype=np.int64)


def submit(scheduler, *sequences, client="a client", seconds=WAIT):
    return scheduler.submit(list(sequences), client=client, deadline=time.monotonic() + seconds)


def running(engine, scheduler):
    """Submit one sequence and return its future once the engine is at it."""
    future = submit(scheduler, ids(1))
    assert engine.entered.acquire(timeout=WAIT)
    return future


def failure(future):
    with pytest.raises(ServingError) as caught:
        future.result(WAIT)
    return caught.value.failure


def test_rewards_are_in_the_order_of_the_sequences(serve):
    engine = Engine()
    scheduler = serve(engine)
    outcome = submit(scheduler, ids(3, 30), ids(1, 10), ids(2, 20), ids(1, 10)).result(WAIT)
    assert outcome.rewards.tolist() == [30, 10, 20, 10]
    assert outcome.columns.tolist() == [[30, 15], [10, 5], [20, 10], [10, 5]]
    assert outcome.rewards.dtype == outcome.columns.dtype == np.float32
    assert (outcome.distinct_tokens, len(engine.calls)) == (8, 1)
    assert outcome.started <= outcome.finished == scheduler.last_step_finished


def test_requests_that_arrive_during_a_step_run_together_in_the_next(serve):
    engine = Engine(is_open=False)
    scheduler = serve(engine)
    first = running(engine, scheduler)
    prefix = np.arange(100)
    siblings = [submit(scheduler, np.append(prefix, number), client=str(number)) for number in range(5)]
    assert (scheduler.queued_items, scheduler.queued_tokens) == (5, 505)
    engine.gate.set()
    assert first.result(WAIT).rewards.tolist() == [1]
    outcomes = [future.result(WAIT) for future in siblings]
    assert [float(outcome.rewards[0]) for outcome in outcomes] == [0, 1, 2, 3, 4]
    assert sorted(outcome.distinct_tokens for outcome in outcomes) == [1, 1, 1, 1, 101]
    assert len(engine.calls) == 2
    assert (scheduler.queued_items, scheduler.queued_tokens) == (0, 0)


def test_a_short_request_waits_for_the_running_step_and_one_more_of_a_large_one(serve):
    engine = Engine(is_open=False)
    scheduler = serve(engine)
    large = submit(scheduler, *(np.arange(number, number + 100) for number in range(0, 20_000, 100)), client="large")
    assert engine.entered.acquire(timeout=WAIT)
    short = submit(scheduler, ids(5), client="short")
    engine.gate.set()
    assert short.result(WAIT).finished < large.result(WAIT).finished
    assert len(engine.calls) == 21
    assert [5] in engine.calls[1]


def test_steps_are_reported(serve):
    steps = []
    scheduler = serve(Engine(), on_step=steps.append)
    prefix = np.arange(100)
    submit(scheduler, np.append(prefix, 1), np.append(prefix, 2)).result(WAIT)
    submit(scheduler, ids(1)).result(WAIT)  # after the report of the first step
    assert (steps[0].sequences, steps[0].tokens, steps[0].distinct_tokens) == (2, 202, 102)
    assert steps[0].seconds > 0


def test_a_step_is_full_where_it_fills_half_of_the_limit_or_others_have_to_wait(serve):
    steps = []
    engine = Engine(max_tokens_per_batch=10)
    scheduler = serve(engine, on_step=steps.append)
    for sequences in ([ids(1)], [np.arange(5)], [np.arange(4), np.arange(100, 107)]):
        submit(scheduler, *sequences).result(WAIT)
    scheduler.stop()
    assert scheduler.join(WAIT)  # the last step is reported after its rewards
    assert [(step.distinct_tokens, step.is_full) for step in steps] == [(1, False), (5, True), (4, True), (7, True)]


def test_the_limit_that_the_engine_learnt_bounds_a_step(serve):
    engine = Engine(max_tokens_per_batch=200)
    scheduler = serve(engine)
    submit(scheduler, *(np.arange(number, number + 100) for number in range(0, 1_000, 100))).result(WAIT)
    assert [len(call) for call in engine.calls] == [2] * 5


def test_cancelled_sequences_do_not_run(serve):
    engine = Engine(is_open=False)
    scheduler = serve(engine)
    first = running(engine, scheduler)
    gone, kept = submit(scheduler, *[ids(2)] * 100), submit(scheduler, ids(3))
    assert gone.cancel()
    assert scheduler.queued_items == 1
    engine.gate.set()
    assert first.result(WAIT).rewards.tolist() == [1]
    assert kept.result(WAIT).rewards.tolist() == [3]
    assert engine.calls == [[[1]], [[3]]]


def test_a_future_of_the_running_step_can_be_cancelled(serve):
    engine = Engine(is_open=False)
    scheduler = serve(engine)
    gone = running(engine, scheduler)
    assert gone.cancel()
    engine.gate.set()
    assert submit(scheduler, ids(2)).result(WAIT).rewards.tolist() == [2]
    with pytest.raises(CancelledError):
        gone.result(WAIT)
    assert scheduler.state == "running"


def test_a_cancelled_asyncio_future_leaves_the_queue(serve):
    engine = Engine(is_open=False)
    scheduler = serve(engine)

    async def leave():
        future = asyncio.wrap_future(submit(scheduler, ids(2)))
        future.cancel()
        await asyncio.sleep(0)  # asyncio calls the callbacks of the future in the next round

    running(engine, scheduler)
    asyncio.run(leave())
    assert scheduler.queued_items == 0


def test_what_is_past_its_deadline_does_not_run(serve):
    engine = Engine(is_open=False)
    scheduler = serve(engine)
    running(engine, scheduler)
    late = submit(scheduler, ids(2), ids(3), seconds=0)
    engine.gate.set()
    with pytest.raises(ServingError) as caught:
        late.result(WAIT)
    assert (caught.value.failure, caught.value.retry_after) == ("late", 1)
    assert engine.calls == [[[1]]]


def test_what_would_be_late_at_the_end_of_the_step_does_not_run(serve):
    engine = Engine(is_open=False, max_tokens_per_batch=10)
    scheduler = serve(engine)
    first = submit(scheduler, np.arange(10))
    assert engine.entered.acquire(timeout=WAIT)
    time.sleep(0.2)  # the engine takes this long
    engine.gate.set()
    first.result(WAIT)
    assert failure(submit(scheduler, np.arange(10), seconds=0.1)) == "late"
    assert len(engine.calls) == 1


@pytest.mark.parametrize(
    "fault", [POISON, NAN, NAN_BESIDE, HALF_SENT],
    ids=["exception", "not finite", "not finite beside the reward", "a reward is missing"],
)  # fmt: skip
def test_only_the_culprit_of_a_failed_step_fails(serve, fault, caplog):
    engine = Engine(is_open=False)
    scheduler = serve(engine)
    running(engine, scheduler)
    neighbours = [submit(scheduler, ids(number), ids(number + 1)) for number in (10, 20)]
    culprit = submit(scheduler, ids(1), ids(2, fault))
    engine.gate.set()
    with pytest.raises(ServingError) as caught, caplog.at_level(logging.ERROR):
        culprit.result(WAIT)
    assert caught.value.failure == "model_fault"
    assert str(fault) not in caught.value.message + caplog.text
    assert [future.result(WAIT).rewards.tolist() for future in neighbours] == [[10, 11], [20, 21]]
    assert scheduler.state == "running"


def test_a_failed_sequence_takes_the_rest_of_its_request_out_of_the_queue(serve):
    engine = Engine(max_tokens_per_batch=1)
    scheduler = serve(engine)
    failed = submit(scheduler, ids(POISON), *(ids(POISON + number) for number in range(1, 500)))
    assert failure(failed) == "model_fault"
    assert submit(scheduler, ids(1)).result(WAIT).rewards.tolist() == [1]
    assert len(engine.calls) < 10
    assert scheduler.queued_items == 0


def test_a_failure_of_the_thread_itself_is_the_end(serve):
    engine = Engine(is_open=False)

    def report(step):
        raise ZeroDivisionError

    scheduler = serve(engine, on_step=report)
    first = running(engine, scheduler)
    waiting = submit(scheduler, ids(2))
    engine.gate.set()
    assert first.result(WAIT).rewards.tolist() == [1]
    assert failure(waiting) == "dead"
    assert scheduler.state == "dead"
    with pytest.raises(ServingError, match="stopped"):
        submit(scheduler, ids(3))


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="this torch has no type for a fault of the device")
def test_a_fault_of_the_device_is_the_end(serve):
    class Lost(Engine):
        def score_columns(self, sequences):
            raise torch.AcceleratorError("device-side assert")

    scheduler = serve(Lost())
    assert failure(submit(scheduler, ids(1), ids(2))) == "dead"
    assert scheduler.state == "dead"


def test_stop_lets_the_running_step_end_and_fails_the_rest(serve):
    engine = Engine(is_open=False)
    scheduler = serve(engine)
    first = running(engine, scheduler)
    waiting = submit(scheduler, ids(2))
    scheduler.stop()
    assert failure(waiting) == "draining"
    assert not first.done()
    engine.gate.set()
    assert first.result(WAIT).rewards.tolist() == [1]
    assert scheduler.join(WAIT)
    assert scheduler.state == "stopped"
    with pytest.raises(ServingError, match="shutting down"):
        submit(scheduler, ids(3))


def test_a_request_that_stop_cuts_between_two_steps_fails(serve):
    engine = Engine(is_open=False, max_tokens_per_batch=1)
    scheduler = serve(engine)
    cut = submit(scheduler, ids(1), ids(2))
    assert engine.entered.acquire(timeout=WAIT)
    scheduler.stop()
    engine.gate.set()
    assert failure(cut) == "draining"
    assert len(engine.calls) == 1


def test_a_hung_engine_is_noticed_and_all_that_wait_can_be_failed(serve):
    engine = Engine(is_open=False)
    scheduler = serve(engine, hung_after=0.0)
    assert not scheduler.is_hung
    stuck = running(engine, scheduler)
    waiting = submit(scheduler, ids(2))
    assert scheduler.is_hung
    scheduler.fail_all("the engine hangs")
    assert [failure(stuck), failure(waiting)] == ["dead", "dead"]
    engine.gate.set()
    assert scheduler.join(WAIT)
    assert not scheduler.is_hung
    assert scheduler.state == "dead"


def test_models_on_one_device_take_turns(serve):
    device, engines = threading.Lock(), [Engine(is_open=False), Engine(is_open=False)]
    first, second = (serve(engine, device_lock=device) for engine in engines)
    one = running(engines[0], first)
    other = submit(second, ids(2))
    engines[1].gate.set()
    assert not engines[1].entered.acquire(timeout=0.05)
    assert not second.is_hung
    engines[0].gate.set()
    assert [one.result(WAIT).rewards.tolist(), other.result(WAIT).rewards.tolist()] == [[1], [2]]


@pytest.mark.parametrize(
    "sequences", [[], [ids()], [ids(1), ids()], [ids(-1)], [ids(2**32)]],
    ids=["none", "empty", "one empty", "negative", "too great"],
)  # fmt: skip
def test_sequences_that_cannot_be_queued_are_refused(serve, sequences):
    scheduler = serve(Engine())
    with pytest.raises(ValueError, match="expected"):
        scheduler.submit(sequences, client="a client", deadline=time.monotonic() + WAIT)
    assert scheduler.queued_items == 0


def test_many_threads_get_their_own_rewards(serve):
    engine = Engine()
    scheduler = serve(engine)
    results = {}

    def client(number):
        for turn in range(25):
            last = 1_000 * number + turn
            results[last] = submit(scheduler, np.append(np.arange(50), last), client=str(number)).result(WAIT)

    threads = [threading.Thread(target=client, args=[number]) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert len(results) == 16 * 25
    assert all(outcome.rewards.tolist() == [last] for last, outcome in results.items())
    assert sum(map(len, engine.calls)) == 16 * 25


def test_a_large_request_is_delivered_in_order_over_many_steps(serve):
    engine = Engine()
    scheduler = serve(engine)
    lasts = np.random.default_rng(0).permutation(5_000)
    outcome = submit(scheduler, *(ids(last // 7, last) for last in lasts)).result(WAIT)
    assert outcome.rewards.tolist() == lasts.tolist()
    assert outcome.distinct_tokens == 10_000
    assert len(engine.calls) == 10
