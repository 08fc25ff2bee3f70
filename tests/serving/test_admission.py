"""`Admission`: what may wait."""

import pytest

from plaudit.serving.admission import Admission
from plaudit.serving.scheduler import Step
from plaudit.serving.serving_errors import ServingError


def admission(*, max_items=100, max_tokens=10_000, max_bytes=100_000):
    return Admission(max_items=max_items, max_tokens=max_tokens, max_bytes=max_bytes)


def reserve(admission, *, client="a client", items=1, size=400, seconds=100.0, queued_tokens=0):
    return admission.reserve(client=client, items=items, size=size, seconds=seconds, queued_tokens=queued_tokens)


def step(tokens, seconds, *, is_full=True):
    return Step(sequences=1, tokens=tokens, distinct_tokens=tokens, seconds=seconds, is_full=is_full)


def refusal(admission, **request):
    with pytest.raises(ServingError) as caught:
        reserve(admission, **request)
    assert caught.value.failure == "overloaded"
    return caught.value


@pytest.mark.parametrize("request_", [{"items": 60}, {"size": 24_000}], ids=["items", "tokens"])
def test_a_request_that_would_exceed_a_budget_is_refused_until_another_has_left(request_):
    doorman = admission()
    with reserve(doorman, **request_):
        assert refusal(doorman, **request_).retry_after == 1
        assert "full" in refusal(doorman, **request_).message
        with reserve(doorman):
            pass
    with reserve(doorman, **request_):
        pass


def test_bytes_are_bounded():
    doorman = admission(max_tokens=10**9)
    with reserve(doorman, size=60_000):
        refusal(doorman, size=60_000)


@pytest.mark.parametrize("request_", [{"items": 101}, {"size": 200_000}, {"seconds": 0.001}], ids=str)
def test_a_request_that_finds_the_server_empty_is_admitted(request_):
    doorman = admission()
    doorman.record(step(100, 1.0))
    with reserve(doorman, **request_):
        pass


def test_a_step_that_is_not_full_says_nothing_about_the_wait_for_a_long_queue():
    doorman = admission()
    doorman.record(step(10, 1.0, is_full=False))
    with reserve(doorman, size=10_000):
        assert doorman.estimated_wait() == 0
        doorman.record(step(1000, 1.0))
        assert doorman.estimated_wait() == pytest.approx(2.5)


def test_an_error_gives_the_reservation_back():
    doorman = admission()
    with pytest.raises(ZeroDivisionError), reserve(doorman, items=100):
        raise ZeroDivisionError
    with reserve(doorman), reserve(doorman):
        pass


def test_nothing_is_refused_for_lateness_before_a_step_was_measured():
    doorman = admission()
    with reserve(doorman), reserve(doorman, seconds=0.0):
        assert doorman.estimated_wait() == 0.0


def test_a_request_that_would_wait_too_long_is_refused():
    doorman = admission()
    doorman.record(step(100, 1.0))
    with reserve(doorman, size=4_000):  # 1,000 tokens, 10 s
        assert doorman.estimated_wait() == pytest.approx(10)
        late = refusal(doorman, seconds=16.0)  # with its own second and two steps, 13 s are more than 0.8 of 16 s
        assert (late.retry_after, "deadline" in late.message) == (5, True)
        with reserve(doorman, seconds=17.0):
            pass


def test_a_light_client_does_not_wait_for_the_whole_queue_of_a_greedy_one():
    doorman = admission()
    doorman.record(step(100, 1.0))
    with reserve(doorman, client="greedy", size=4_000):
        refusal(doorman, client="greedy", seconds=5.0)
        with reserve(doorman, client="light", seconds=5.0):
            pass


def test_a_light_client_is_refused_where_it_would_make_others_late():
    doorman = admission()
    doorman.record(step(100, 1.0))
    with reserve(doorman, client="greedy", size=4_000, seconds=16.0):
        refusal(doorman, client="light", seconds=16.0)
    with reserve(doorman, client="greedy", size=4_000, seconds=17.0), reserve(doorman, client="light", seconds=6.0):
        pass


def test_time_is_left_for_the_running_step_though_nothing_waits():
    doorman = admission()
    doorman.record(step(1_000, 10.0))
    with reserve(doorman, size=4_000, seconds=100.0) as running:
        running.settle(1_000)
        refusal(doorman, size=40, seconds=20.0, queued_tokens=0)
        with reserve(doorman, size=40, seconds=30.0, queued_tokens=0):
            pass


def test_of_a_batch_that_is_being_answered_only_the_rest_counts():
    doorman = admission()
    doorman.record(step(100, 1.0))
    with reserve(doorman, size=36_000, seconds=110.0) as batch:
        batch.settle(9_000)
        assert refusal(doorman, client="light", seconds=110.0, queued_tokens=9_000).retry_after == 45
        with reserve(doorman, client="light", seconds=110.0, queued_tokens=8_000):
            pass
        assert refusal(doorman, seconds=110.0, size=4_000, queued_tokens=8_000).retry_after == 40


def test_the_time_to_try_again_is_at_most_a_minute():
    doorman = admission()
    doorman.record(step(1, 1.0))
    with reserve(doorman):
        assert refusal(doorman, seconds=1.0).retry_after == 50
        with reserve(doorman, size=4_000, seconds=10_000.0):
            assert refusal(doorman, seconds=1.0).retry_after == 60


def test_the_exact_number_of_tokens_replaces_the_estimate():
    doorman = admission()
    doorman.record(step(100, 1.0))
    with reserve(doorman, size=400) as reservation:
        reservation.settle(50)
        assert doorman.estimated_wait(queued_tokens=50) == pytest.approx(0.5)
    assert doorman.estimated_wait() == 0.0


def test_tokens_for_a_byte_are_learnt():
    doorman = admission(max_bytes=10**9)
    doorman.record(step(1_000, 1.0))
    with reserve(doorman, size=1_000) as reservation:
        reservation.settle(1_000)
    with reserve(doorman, size=2_000):
        assert doorman.estimated_wait() == pytest.approx(2)
    with reserve(doorman, size=20_000_000) as reservation:  # recent bodies count for more
        reservation.settle(2_000_000)
    with reserve(doorman, size=10_000):
        assert doorman.estimated_wait() == pytest.approx(1, rel=0.01)


def test_the_rate_follows_the_recent_steps():
    doorman = admission()
    for _ in range(100):
        doorman.record(step(1_000, 1.0))
    for _ in range(50):
        doorman.record(step(100, 1.0))
    with reserve(doorman, size=400):
        assert doorman.estimated_wait() == pytest.approx(1, rel=0.1)
