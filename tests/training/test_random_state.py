"""A trial run leaves the random state as it was."""

import random
from contextlib import suppress

import numpy as np
import pytest
import torch

from plaudit.training.random_state import keep_random_state


def draw():
    return random.random(), np.random.random(), torch.rand(1).item()


def seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_random_state():
    """The seeds of this file do not reach other tests."""
    with keep_random_state():
        yield


def test_draws_inside_do_not_change_the_draws_after():
    seed()
    expected = draw()
    seed()
    with keep_random_state():
        assert draw() == expected  # it begins with the state there is
        draw()
    assert draw() == expected


def test_a_seed_set_inside_is_forgotten():
    seed()
    expected = draw()
    seed()
    with keep_random_state():
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
    assert draw() == expected


def test_an_error_inside_restores_it_too():
    seed()
    expected = draw()
    seed()
    with suppress(RuntimeError), keep_random_state():
        draw()
        raise RuntimeError
    assert draw() == expected
