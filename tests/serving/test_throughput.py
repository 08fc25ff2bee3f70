"""`Throughput`: how fast an engine has run of late."""

import pytest

from plaudit.serving.throughput import Throughput


def test_nothing_is_known_before_the_first_step():
    assert (Throughput().seconds_per_token, Throughput().seconds_per_step) == (0, 0)


def test_the_seconds_of_a_step_are_a_mean_of_recent_ones():
    throughput = Throughput()
    throughput.record(100, 1_000.0)
    for seconds in [0.5, 1.5] * 50:
        throughput.record(100, seconds)
    assert throughput.seconds_per_step == pytest.approx(1.0, rel=0.2)


def test_tokens_and_seconds_are_summed_over_steps():
    throughput = Throughput()
    throughput.record(100, 0.1)
    throughput.record(300, 0.1)
    assert throughput.seconds_per_token == pytest.approx(0.2 / 400, rel=0.01)


def test_recent_steps_count_for_more():
    throughput = Throughput()
    throughput.record(1_000_000, 1_000.0)
    for _ in range(50):
        throughput.record(100, 1.0)
    assert throughput.seconds_per_token == pytest.approx(0.01, rel=0.1)
