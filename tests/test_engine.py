"""The scoring engine, seen from the model: token ids alone, no text."""

import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    FNetConfig,
    ModernBertDecoderConfig,
    Qwen3ForSequenceClassification,
    T5GemmaConfig,
    set_seed,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from plaudit.engine import ScoringEngine
from plaudit.errors import ModelError
from plaudit.models.inputs import padded_inputs


def sequences_of(lengths, seed=0):
    """Sequences that share nothing: each begins with a token of its own."""
    draw = np.random.default_rng(seed)
    return [[n + 3, *draw.integers(100, 300, length - 1).tolist()] for n, length in enumerate(lengths)]


SEQUENCES = sequences_of([26, 5, 68, 12, 47, 19, 61, 33])
SMALL = {
    "vocab_size": 330, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_labels": 1, "initializer_range": 0.3,
}  # fmt: skip
GEMMA = SMALL | {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "pad_token_id": 1}


@pytest.fixture
def engine(make_model):
    return ScoringEngine(make_model(), 4096)


def build(config):
    set_seed(0)
    return AutoModelForSequenceClassification.from_config(config).eval()


def one_by_one(model, sequences=SEQUENCES):
    """Rewards by the forward that the model has now, without padding."""
    with torch.inference_mode():
        return np.array([model(**padded_inputs([ids], 0)).logits.item() for ids in sequences], dtype=np.float32)


# Batches


@pytest.fixture
def ran(make_model):
    """An engine in a layout, and the shapes of the batches that it runs from now on."""

    def start(layout, budget):
        engine = ScoringEngine(make_model(), budget)
        engine.score(SEQUENCES[:1])  # settles the layout
        engine.layout = layout
        shapes = []
        engine.model.model.register_forward_pre_hook(
            lambda _, __, options: shapes.append(tuple(options["input_ids"].shape)), with_kwargs=True
        )
        return engine, shapes

    return start


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


def test_rewards_come_in_the_order_of_the_sequences_whatever_the_budget(make_model):
    expected = one_by_one(make_model().eval())
    for budget in (1, 20, 100, 10_000):
        np.testing.assert_allclose(ScoringEngine(make_model(), budget).score(SEQUENCES), expected, atol=2e-6)


def test_no_sequences_have_no_rewards(engine):
    assert engine.score([]).shape == (0,)


def test_a_token_id_beyond_the_embedding_is_an_error_that_names_it(engine):
    with pytest.raises(ModelError, match="a sequence has the token id 320, and the model's embedding ends at 319"):
        engine.score([[1, 319], [1, 320]])
    assert engine.score([[1, 319]]).shape == (1,)


# Memory


@pytest.fixture
def limit_memory(engine):
    """Give the device room for so many positions; returns the numbers of sequences of the batches that it ran."""

    def limit(positions):
        sizes = []

        def check(model, args, options):
            if options["input_ids"].numel() > positions:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            sizes.append(len(options["leaf"] if "leaf" in options else options["input_ids"]))

        engine.model.register_forward_pre_hook(check, with_kwargs=True)
        return sizes

    return limit


@pytest.mark.parametrize("layout", ["forest", "padded"])
def test_batches_that_do_not_fit_into_memory_become_smaller_and_stay_so(engine, limit_memory, layout, caplog):
    expected = engine.score(SEQUENCES)
    engine.layout = layout
    sizes, reported = limit_memory(130), []
    with caplog.at_level("WARNING", logger="plaudit"):
        np.testing.assert_allclose(engine.score(SEQUENCES, reported.append), expected, atol=2e-6)
    assert reported == sizes
    assert sum(sizes) == len(SEQUENCES)
    assert 1 < max(sizes) < len(SEQUENCES)
    budget = engine.max_tokens_per_batch
    assert budget < 4096
    assert f"does not fit into the memory of cpu: going on with max_tokens_per_batch={budget}" in caplog.text
    caplog.clear()
    engine.score(SEQUENCES)
    assert not caplog.text
    assert engine.max_tokens_per_batch == budget


def test_layouts_are_compared_on_short_sequences_where_whole_ones_do_not_fit(make_model, engine, limit_memory):
    long = sequences_of([150, 160, 170])
    expected = one_by_one(make_model().eval(), long)
    sizes = limit_memory(330)
    np.testing.assert_allclose(engine.score(long), expected, atol=2e-6)
    assert engine.layout == "forest"
    assert max(sizes) == 5  # with two sequences that were made to share tokens


def test_a_sequence_that_does_not_fit_into_memory_alone_is_an_error_with_ways_out(engine, limit_memory):
    engine.score(SEQUENCES)
    limit_memory(20)
    with pytest.raises(ModelError, match=r"a sequence of \d+ tokens alone does not fit.*Lower `max_length`"):
        engine.score(SEQUENCES)


# Beside other code


def test_threads_that_share_a_model_take_turns(make_model):
    """In bf16 the first call widens the weights for a while: another one would meet them half way."""
    expected = ScoringEngine(make_model().to(torch.bfloat16), 4096).score(SEQUENCES)
    engine = ScoringEngine(make_model().to(torch.bfloat16), 4096)
    running, most = [], []

    def enter(*_):
        running.append(1)
        most.append(len(running))
        time.sleep(0.01)

    engine.model.register_forward_pre_hook(enter)
    engine.model.register_forward_hook(lambda *_: running.clear())  # and returns None: the output stays
    with ThreadPoolExecutor(4) as pool:
        rewards = list(pool.map(engine.score, [SEQUENCES] * 4))
    assert max(most) == 1
    for each in rewards:
        np.testing.assert_array_equal(each, expected)


def test_autocast_around_a_call_changes_no_reward(engine):
    expected = engine.score(SEQUENCES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(engine.score(SEQUENCES), expected)


def test_a_model_that_is_being_trained_is_scored_without_dropout_and_trains_on(make_model):
    engine = ScoringEngine(make_model(attention_dropout=0.5), 4096)
    expected = engine.score(SEQUENCES)
    engine.model.train()
    engine.model.model.layers[0].eval()  # a layer that is frozen
    np.testing.assert_array_equal(engine.score(SEQUENCES), expected)
    assert engine.model.training
    assert engine.model.model.layers[1].self_attn.training
    assert not engine.model.model.layers[0].self_attn.training


def test_an_engine_can_be_pickled(engine):
    expected = engine.score(SEQUENCES)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(engine)).score(SEQUENCES), expected)


# Which layout


@pytest.mark.parametrize("first", [SEQUENCES[:1], SEQUENCES], ids=["one sequence first", "all at once"])
def test_a_forest_that_scores_wrongly_is_found_out_and_batches_are_padded(make_model, monkeypatch, caplog, first):
    def see_everything(_, args, options):  # each token sees all before it: right for one sequence, and for no two
        if "subtree_end" in options:
            ends = options["subtree_end"]
            options["subtree_end"] = torch.full_like(ends, ends.shape[1])
        return args, options

    model = make_model()
    model.register_forward_pre_hook(see_everything, with_kwargs=True)
    engine = ScoringEngine(model, 4096)
    assert engine.layout == "forest"
    with caplog.at_level("WARNING", logger="plaudit"):
        engine.score(first)
    assert engine.layout == "padded"
    assert f"scoring padded batches, since on {min(len(first), 4) + 2} sequences the rewards of the two" in caplog.text
    np.testing.assert_allclose(engine.score(SEQUENCES), one_by_one(make_model().eval()), atol=2e-6)


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (BertConfig(**SMALL), "padded"),
        (ModernBertDecoderConfig(**SMALL, pad_token_id=1, local_attention=64), "padded"),  # it looks for the pad token
        (T5GemmaConfig(encoder=GEMMA, decoder=GEMMA, num_labels=1, pad_token_id=1), "padded"),
        (FNetConfig(**{name: SMALL[name] for name in SMALL if "heads" not in name}), "alone"),  # mixes the padding in
    ],
    ids=["an encoder", "a decoder with a head of its own", "an encoder and a decoder", "an encoder without a mask"],
)
@pytest.mark.parametrize("first", [1, len(SEQUENCES)], ids=["one sequence first", "all at once"])
def test_where_padding_would_change_rewards_sequences_run_alone(config, layout, first):
    model, sequences = build(config), [[*ids, 1] for ids in SEQUENCES]  # they end in EOS, which is the pad token
    alone = one_by_one(model, sequences)
    assert np.std(alone) > 0.01
    engine = ScoringEngine(model, 200)
    engine.score(sequences[:first])
    np.testing.assert_allclose(engine.score(sequences), alone, atol=1e-5 * np.std(alone) + 1e-6)
    assert engine.layout == layout


class Minus(Qwen3ForSequenceClassification):
    """As a checkpoint with code of its own may read its head elsewhere, and with another sign."""

    def forward(self, input_ids, attention_mask=None):
        hidden = self.model(input_ids, attention_mask=attention_mask)[0]
        return SequenceClassifierOutput(logits=-self.score(hidden[:, 0]) - hidden[:, 1, :1])


class Five(Qwen3ForSequenceClassification):
    def forward(self, input_ids, attention_mask=None):
        return SequenceClassifierOutput(logits=torch.zeros(len(input_ids), 5))


def test_a_model_that_ships_its_own_forward_scores_with_it_in_padded_batches(make_model):
    model = make_model().eval()
    model.__class__ = Minus
    alone = one_by_one(model)
    engine = ScoringEngine(model, 4096)
    np.testing.assert_allclose(engine.score(SEQUENCES), alone, atol=2e-6)
    assert engine.layout == "padded"
    assert pickle.loads(pickle.dumps(engine)).score(SEQUENCES) == pytest.approx(alone, abs=2e-6)


def test_a_model_whose_own_forward_gives_no_single_reward_is_refused(make_model):
    model = make_model()
    model.__class__ = Five
    with pytest.raises(ModelError, match=r"Five: expected `logits` with one reward for each of 1 sequences, got .*5\]"):
        ScoringEngine(model, 4096).score(SEQUENCES)
