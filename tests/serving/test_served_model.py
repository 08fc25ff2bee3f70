import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ensemble_members import save_whole
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed

from plaudit import RewardModel
from plaudit.scoring.ensemble import save_ensemble
from plaudit.serving.scoring_request import ScoringRequest, Text, TokenIds
from plaudit.serving.served_model import ServedModel
from plaudit.serving.serving_errors import ServingError

TEXTS = ["The quick brown fox", "Two plus two is four, not five.", "The quick brown fox jumps over the lazy dog."] * 3

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320,
    "max_position_embeddings": 128, "num_labels": 1, "pad_token_id": 0,
}  # fmt: skip
KINDS = {
    "a forest": ("qwen3", SMALL | {"num_key_value_heads": 2, "head_dim": 8}),
    "an encoder": ("bert", SMALL),
    "a padded decoder": (
        "bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 320, "num_labels": 1, "pad_token_id": 0},
    ),
}  # fmt: skip


def request_of(items, **options):
    return ScoringRequest(items, [f"items[{number}]" for number in range(len(items))], **options)


def scored(model, request, **options):
    given = {"client": "test", "deadline": time.monotonic() + 30} | options
    return asyncio.run(model.score(request, **given))


@pytest.fixture
def serve(rendering_pool):
    """A function that serves a model; the threads of all of them end after the test."""
    served = []

    def start(reward_model, **options):
        served.append(ServedModel("tiny", reward_model, pool=rendering_pool, **options))
        return served[-1]

    yield start
    for each in served:
        each.close()


def new_model(kind, *, adapted=False):
    name, options = KINDS[kind]
    set_seed(0)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(name, **options))
    if adapted:
        config = LoraConfig(
            task_type=TaskType.SEQ_CLS, r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"]
        )
        model = get_peft_model(model, config)
    return model


@pytest.mark.parametrize(
    ("kind", "adapted", "layout"),
    [
        ("a forest", False, "forest"),
        ("a forest", True, "forest"),
        ("an encoder", False, "padded"),
        ("a padded decoder", False, "padded"),
    ],
)
def test_whatever_the_reward_model_loads_is_served_with_its_rewards(serve, tokenizer, kind, adapted, layout):
    expected = RewardModel(new_model(kind, adapted=adapted), tokenizer).score(TEXTS)
    served = serve(RewardModel(new_model(kind, adapted=adapted), tokenizer))
    assert served.info.layout == layout
    answer = scored(served, request_of([Text(text) for text in TEXTS]))
    np.testing.assert_allclose(answer.rewards, expected, atol=1e-5)


def test_a_request_of_siblings_runs_their_prompt_once(serve, make_model, tokenizer):
    model = RewardModel(make_model(), tokenizer)
    siblings = ["The quick brown fox jumps over the lazy dog. " * 3 + end for end in ("a", "b", "c", "d")]
    ids = model.token_ids(siblings)
    answer = scored(serve(model), request_of([TokenIds(each) for each in ids]))
    shared = len(ids[0]) - 2
    assert answer.distinct_tokens <= shared + 4 * 3 < sum(answer.tokens)


def test_the_tokens_are_known_before_anything_runs(serve, make_model, tokenizer):
    told = []
    answer = scored(serve(RewardModel(make_model(), tokenizer)), request_of([Text("The sky")]), on_tokens=told.append)
    assert told == [sum(answer.tokens)]


def test_a_deadline_that_has_passed_is_late(serve, make_model, tokenizer):
    with pytest.raises(ServingError) as caught:
        scored(
            serve(RewardModel(make_model(), tokenizer)), request_of([Text("The sky")]), deadline=time.monotonic() - 1
        )
    assert caught.value.failure == "late"


def test_a_scale_is_applied_where_it_was_saved(serve, make_model, tokenizer):
    model = RewardModel(make_model(), tokenizer, scale=(2.0, 0.5), temperature=4.0)
    served = serve(model)
    raw, normalised, calibrated = (
        scored(served, request_of([Text("The sky")], **options)).values[0]
        for options in ({}, {"normalize": True}, {"calibrated": True})
    )
    np.testing.assert_allclose([normalised, calibrated], [(raw - 2) / 0.5, raw / 4], rtol=1e-5)


@pytest.mark.parametrize("option", ["normalize", "calibrated"])
def test_a_scale_that_was_not_saved_is_an_error(serve, make_model, tokenizer, option):
    served = serve(RewardModel(make_model(), tokenizer))
    with pytest.raises(ServingError, match=f"{option}: the model was saved without") as caught:
        scored(served, request_of([Text("The sky")], **{option: True}))
    assert caught.value.param == option


@pytest.mark.parametrize(("truncates", "tokens"), [(True, 8), (False, None)])
def test_the_server_s_own_rule_for_what_is_too_long(serve, make_model, tokenizer, truncates, tokens):
    served = serve(RewardModel(make_model(), tokenizer, max_length=8), truncates=truncates)
    request = request_of([Text("The quick brown fox jumps over the lazy dog.")])
    if truncates:
        assert scored(served, request).tokens == [tokens]
        return
    with pytest.raises(ServingError) as caught:
        scored(served, request)
    assert caught.value.failure == "too_long"


def test_another_model_has_another_version(serve, make_model, tokenizer, tmp_path):
    versions = set()
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        make_model(seed).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        versions.add(serve(RewardModel.from_pretrained(folder)).info.weight_version)
    assert len(versions) == 2


def test_a_truncated_sequence_counts_once_for_all_its_prefixes(serve, make_model, tokenizer):
    served = serve(RewardModel(make_model(), tokenizer, max_length=8), truncates=True)
    answer = scored(served, request_of([Text("The quick brown fox jumps over the lazy dog.")], prefix_step=1))
    assert (len(answer.rewards), answer.truncated_items, answer.truncated[-1]) == (8, 1, True)


def test_prefixes_that_would_fill_the_memory_are_refused_before_they_are_made(serve, make_model, tokenizer):
    served = serve(RewardModel(make_model(), tokenizer, max_length=10**6))
    request = request_of([TokenIds([5] * 100_000)], prefix_step=297)
    with pytest.raises(ServingError, match="expected 299 or more") as caught:
        scored(served, request)
    assert (caught.value.failure, caught.value.param) == ("invalid", "every")


def test_a_client_that_leaves_while_its_request_is_being_queued_leaves_nothing_in_the_queue(make_model, tokenizer):
    async def leave():
        lock = threading.Lock()
        with ThreadPoolExecutor(1) as pool:
            served = ServedModel("tiny", RewardModel(make_model(), tokenizer), pool=pool, device_lock=lock)
            submit, submitting, left = served.scheduler.submit, threading.Event(), threading.Event()
            futures = []

            def submit_slowly(*arguments, **options):
                submitting.set()
                assert left.wait(10)
                futures.append(submit(*arguments, **options))
                return futures[0]

            served.scheduler.submit = submit_slowly
            with lock:  # nothing runs meanwhile
                request = request_of([TokenIds([number, 5, 6]) for number in range(3, 103)])
                asking = asyncio.create_task(served.score(request, client="test", deadline=time.monotonic() + 30))
                await asyncio.to_thread(submitting.wait, 10)
                asking.cancel()
                await asyncio.wait([asking])
                left.set()
                await asyncio.to_thread(pool.shutdown)
                assert futures[0].cancelled()
                assert served.queued_items == 0
            served.close()

    asyncio.run(leave())


def test_a_served_ensemble_answers_with_the_mean_of_its_members(serve, make_model, tokenizer, tmp_path):
    paths = [save_whole(tmp_path / f"m{seed}", make_model, tokenizer, seed) for seed in range(2)]
    save_ensemble(paths, tmp_path / "ensemble", TEXTS)
    model = serve(RewardModel.from_pretrained(tmp_path / "ensemble"))
    found = scored(model, request_of([Text(each) for each in TEXTS])).rewards
    alone = [RewardModel.from_pretrained(path).score(TEXTS) for path in paths]
    assert found == pytest.approx(np.mean(alone, axis=0), abs=1e-5)
    assert model.info.layout == "forest"
