"""Which sequences run together, seen from the model: token ids alone, no text."""

import numpy as np
import pytest

from plaudit.engine import ScoringEngine


@pytest.fixture
def ran(make_model):
    """An engine that has settled its layout, and the shape of what it runs."""

    def start(layout, budget):
        engine = ScoringEngine(make_model(), budget)
        engine.layout, engine._is_compared = layout, True
        shapes = []
        engine.model.model.register_forward_pre_hook(
            lambda _, __, options: shapes.append(tuple(options["input_ids"].shape)), with_kwargs=True
        )
        return engine, shapes

    return start


def sequences_of(lengths, seed=0):
    """Sequences that share nothing: each begins with a token of its own."""
    draw = np.random.default_rng(seed)
    return [[n, *draw.integers(100, 300, length - 1)] for n, length in enumerate(lengths)]


@pytest.mark.parametrize("layout", ["forest", "padded"])
def test_a_batch_is_as_full_as_the_budget_allows_and_no_fuller(ran, layout):
    engine, shapes = ran(layout, 30)
    engine.score(sequences_of([10] * 7))
    assert [np.prod(shape) for shape in shapes] == [30, 30, 10]
    shapes.clear()
    engine.score(sequences_of([4, 11, 31, 2, 7, 9, 40, 3, 5, 8, 6, 13]))
    tokens = [int(np.prod(shape)) for shape in shapes]
    assert [count for count in tokens if count > 30] == ([31, 40] if layout == "forest" else [40, 31])
    assert len(tokens) <= 7  # two too long for any company, and 68 tokens with some padding


def test_what_sequences_share_counts_once_in_each_batch_wherever_they_stand(ran):
    """Two prompts of 40 tokens, in turn, with 24 responses of 5 tokens each: 40 + 8 x 5 tokens fill a batch."""
    draw = np.random.default_rng(0)
    prompts = [[first, *draw.integers(100, 300, 39)] for first in (256, 1)]
    sequences = [[*prompt, 10 + reply, *draw.integers(100, 300, 4)] for reply in range(24) for prompt in prompts]
    engine, shapes = ran("forest", 80)
    expected = np.concatenate([engine.score([each]) for each in sequences])
    shapes.clear()
    np.testing.assert_allclose(engine.score(sequences), expected, atol=2e-6)
    assert shapes == [(1, 80)] * 6
