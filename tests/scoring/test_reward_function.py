import functools
import json
import logging
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from stub_server import StubServer
from transformers import AutoModelForSequenceClassification

from plaudit import RewardFunction, RewardModel, combine
from plaudit.errors import ConfigError, DataError, ModelError, ServerError
from plaudit.scoring.remote_model import RemoteRewardModel

PROMPTS = ["Is the sky blue?", "Is the dog quick?", "Is the sky blue?"]
TEXTS = [" Yes, the sky is blue.", " No", " No, it is green!"]


@pytest.fixture
def scorer(make_model, tokenizer):
    return RewardModel(make_model(), tokenizer)


@pytest.fixture
def folder(make_model, tokenizer, tmp_path):
    model = make_model()
    model.config.pad_token_id = tokenizer.pad_token_id
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "my-reward")
    return tmp_path / "my-reward"


def message(role, text):
    return [{"role": role, "content": text}]


def length(completions, **columns):
    return [float(len(completion)) for completion in completions]


def polite(completions, **columns):
    return [float("Yes" in completion) for completion in completions]


# One function


def test_rewards_are_those_of_the_model_for_texts_and_for_messages(scorer):
    function = RewardFunction(scorer)
    rewards = function(prompts=PROMPTS, completions=TEXTS)
    assert isinstance(rewards, list)
    assert [type(reward) for reward in rewards] == [float] * 3
    assert rewards == pytest.approx(scorer.score([p + c for p, c in zip(PROMPTS, TEXTS, strict=True)]), abs=2e-6)
    prompts, completions = [message("user", p) for p in PROMPTS], [message("assistant", c) for c in TEXTS]
    chats = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    assert function(prompts, completions) == pytest.approx(scorer.score(chats), abs=2e-6)
    assert function(prompts, completions) != pytest.approx(rewards, abs=1e-3)


def test_other_columns_are_not_looked_at(scorer):
    function = RewardFunction(scorer)
    columns = {"completion_ids": [[1], [2], [3]], "trainer_state": None, "options": [{}], "normalize": True}
    assert function(PROMPTS, TEXTS, **columns) == function(PROMPTS, TEXTS)


def test_tools_and_template_options_of_the_dataset_reach_the_template(scorer):
    function, tools = RewardFunction(scorer), [{"name": "add"}]
    prompts, completions = [message("user", p) for p in PROMPTS], [message("assistant", c) for c in TEXTS]
    columns = {"tools": [None, tools, json.dumps(tools)], "chat_template_kwargs": [{"shout": True}, None, None]}
    expected = scorer.score(prompts, completions, [{"shout": True}, {"tools": tools}, {"tools": tools}])
    assert function(prompts, completions, **columns) == pytest.approx(expected, abs=2e-6)
    assert function(prompts, completions) != pytest.approx(expected, abs=1e-3)
    with pytest.raises(DataError, match="row 1, column 'tools': expected a list of tools"):
        function(prompts, completions, tools=[None, "add", None])
    with pytest.raises(DataError, match="column 'tools': expected a list of 3 values, one for each completion"):
        function(prompts, completions, tools=tools)
    with pytest.raises(DataError, match="'chat_template_kwargs': expected a list of 1 values, .* got {'shout': True}"):
        function(prompts[:1], completions[:1], chat_template_kwargs={"shout": True})


def test_a_prompt_that_comes_twice_runs_once(scorer):
    prompt = "Is the quick brown fox that jumps over the lazy dog two, four or five? " * 3
    seen = []
    scorer.score(["Yes, the sky is blue."])  # so that the comparison of layouts is over
    scorer.model.base_model.register_forward_pre_hook(
        lambda module, arguments, options: seen.append(options["input_ids"].numel()), with_kwargs=True
    )
    RewardFunction(scorer)([prompt] * 4, [*TEXTS, " Thank you"])
    distinct = [scorer.tokenizer(text)["input_ids"] for text in (prompt, *TEXTS, " Thank you")]
    assert sum(seen) <= sum(map(len, distinct)) + 4  # an EOS each


def test_its_name_is_that_of_the_path_or_the_one_that_was_given(scorer, folder):
    assert RewardFunction(folder).__name__ == "my-reward"
    assert RewardFunction("someone/their-reward").__name__ == "their-reward"
    assert RewardFunction(scorer).__name__ == "reward_model"
    assert RewardFunction(folder, name="helpful").__name__ == "helpful"


def test_normalized_then_clipped_then_the_penalty(make_model, tokenizer):
    scorer = RewardModel(make_model(), tokenizer, scale=(2.0, 0.1))
    raw = np.array(RewardFunction(scorer)(PROMPTS, TEXTS))
    normal, lengths = (raw - 2.0) / 0.1, np.array([len(text) for text in TEXTS])
    low, middle, high = sorted(normal)
    assert low < -0.5 < 0.5 < middle < high  # so that every bound below takes effect
    for options, expected in (
        ({"normalize": True}, normal),
        ({"clip": (2.0, 2.2)}, raw.clip(2.0, 2.2)),
        ({"clip": 2.1}, raw.clip(-2.1, 2.1)),
        ({"normalize": True, "clip": 0.5}, normal.clip(-0.5, 0.5)),
        ({"length_penalty": 0.1}, raw - 0.1 * lengths),
        ({"length_penalty": 0}, raw),
        ({"normalize": True, "clip": (-0.4, 1e3), "length_penalty": 0.1}, normal.clip(-0.4, 1e3) - 0.1 * lengths),
    ):
        assert RewardFunction(scorer, **options)(PROMPTS, TEXTS) == pytest.approx(expected, abs=1e-5), options


@pytest.mark.parametrize("aggregate", ["mean", "min", "mean-std", "mean-var"])
def test_a_conservative_reward_is_that_of_the_model_and_is_clipped_in_its_own_unit(ensemble_folder, aggregate):
    model = RewardModel.from_pretrained(ensemble_folder)
    k = 0.5 if aggregate.startswith("mean-") else 1.0
    expected = model.score(PROMPTS, TEXTS, aggregate=aggregate, k=k)
    for source in (model, ensemble_folder):
        function = RewardFunction(source, aggregate=aggregate, k=k, clip=0.5, length_penalty=0.01)
        penalty = 0.01 * np.array([len(text) for text in TEXTS])
        assert function(PROMPTS, TEXTS) == pytest.approx(expected.clip(-0.5, 0.5) - penalty, abs=2e-6)


def test_a_conservative_reward_of_a_single_model_is_refused_before_a_policy_generates(scorer, folder):
    with pytest.raises(ConfigError, match="aggregate='min': .* is a single model"):
        RewardFunction(scorer, aggregate="min")
    function = RewardFunction(folder, aggregate="min")
    with pytest.raises(ConfigError, match="aggregate='min': .*my-reward is a single model"):
        _ = function.reward_model


def test_the_penalty_counts_what_the_assistant_wrote(scorer):
    completion = [
        {"role": "assistant", "content": "Is it?"},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "add"}}]},
        {"role": "tool", "content": "Two plus two is four."},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes"}]},
    ]
    functions = RewardFunction(scorer), RewardFunction(scorer, length_penalty=1)
    free, paid = (function([message("user", "?")], [completion]) for function in functions)
    assert free[0] - paid[0] == pytest.approx(len("Is it?") + len("Yes"), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clip": 0}, "clip: expected a number above 0"),
        ({"clip": (2, 1)}, "clip"),
        ({"clip": math.nan}, "clip"),
        ({"length_penalty": -1}, "length_penalty: expected a number of 0 or more, got -1"),
        ({"length_penalty": math.inf}, "length_penalty"),
        ({"length_penalty": "0.1"}, "length_penalty"),
        ({"clip": "5"}, "clip: expected a number above 0, or a least and a greatest reward, got '5'"),
        ({"clip": (1, 2, 3)}, "clip"),
        ({"aggregate": "worst"}, "aggregate: expected one of mean, min, mean-std, mean-var, got 'worst'"),
        ({"aggregate": "min", "k": "1"}, "k: expected a finite number of at least 0, got '1'"),
        ({"aggregate": "min", "normalize": True}, "normalize: .* standard deviations of the rewards already"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(options, said):
    with pytest.raises(ConfigError, match=said):
        RewardFunction("someone/their-reward", **options)


def test_a_folder_may_lie_in_the_home_folder_and_is_kept_by_its_whole_path(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    function = RewardFunction("~/my-reward")
    assert repr(function) == f"RewardFunction({str(folder.resolve())!r}, name='my-reward')"
    assert function(PROMPTS, TEXTS) == pytest.approx(RewardFunction(folder)(PROMPTS, TEXTS), abs=2e-6)
    assert repr(RewardModel.from_pretrained("~/my-reward", device="cpu")).startswith(
        f"RewardModel({str(folder)!r}, Qwen3"
    )


@pytest.mark.parametrize("path", ["./my-reward", "/no/such/reward", "~/no-such-reward"])
def test_a_folder_that_is_not_there_is_refused_before_a_policy_generates(path):
    with pytest.raises(ConfigError, match=f"there is no folder '{path}'"):
        RewardFunction(path)


def test_a_bare_model_is_refused_with_the_way_out(make_model):
    with pytest.raises(ConfigError, match=r"got a Qwen3ForSequenceClassification.*RewardModel\(model, tokenizer\)"):
        RewardFunction(make_model())


def test_a_model_without_a_scale_cannot_normalize(scorer):
    with pytest.raises(ConfigError, match="normalize"):
        RewardFunction(scorer, normalize=True)(PROMPTS, TEXTS)


def test_a_reward_that_is_not_finite_is_an_error_and_no_silent_skip(scorer):
    scorer.score(TEXTS)  # settles the layout
    torch.nn.init.constant_(scorer.model.score.weight, torch.nan)
    with pytest.raises(ModelError, match="reward_model: expected finite rewards, but that of completion 0 is nan"):
        RewardFunction(scorer)(PROMPTS, TEXTS)


# Behind a server


@pytest.fixture
def server(scorer, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("PLAUDIT_API_KEY", raising=False)
    with StubServer(scorer, key="secret") as stub:
        yield stub


def test_an_address_rewards_as_the_model_there(server, scorer):
    function = RewardFunction(server.url, key="secret", length_penalty=0.1)
    expected = RewardFunction(scorer, length_penalty=0.1)
    assert function(PROMPTS, TEXTS) == pytest.approx(expected(PROMPTS, TEXTS), abs=2e-6)
    prompts, completions = [message("user", p) for p in PROMPTS], [message("assistant", c) for c in TEXTS]
    columns = {"tools": [None, [{"name": "add"}], None], "log_metric": print}
    rewards = function(prompts, completions, **columns)
    assert rewards == pytest.approx(expected(prompts, completions, **columns), abs=2e-6)
    assert function([], []) == []


def test_an_address_gives_conservative_rewards(ensemble_folder):
    model = RewardModel.from_pretrained(ensemble_folder)
    expected = RewardFunction(model, aggregate="mean-var", k=0.5)(PROMPTS, TEXTS)
    with StubServer(model) as server:
        assert RewardFunction(server.url, aggregate="mean-var", k=0.5)(PROMPTS, TEXTS) == pytest.approx(expected)


def test_its_name_is_the_last_part_of_the_address(server):
    assert RewardFunction("http://rewards:8000").__name__ == "rewards:8000"
    assert RewardFunction("https://gateway/helpful/").__name__ == "helpful"
    assert RewardFunction(RemoteRewardModel(server.url, model="served")).__name__ == "served"
    assert repr(RewardFunction(server.url, key="secret", name="r")) == (
        f"RewardFunction(RemoteRewardModel('{server.url}'), name='r')"
    )


def test_a_key_without_an_address_is_refused(folder):
    with pytest.raises(ConfigError, match="key: expected the address of a server with it"):
        RewardFunction(folder, key="secret")


def test_a_server_that_is_gone_is_an_error_and_never_a_reward(server):
    server.answers = [(503, {"Retry-After": "0"}, "")] * 2
    with pytest.raises(ServerError, match=server.url):
        RewardFunction(RemoteRewardModel(server.url, key="secret", retries=1))(PROMPTS, TEXTS)


def test_an_address_is_a_part_of_a_combination_that_pickles(server, monkeypatch):
    monkeypatch.setenv("PLAUDIT_API_KEY", "secret")
    both = combine({server.url: 2.0, length: 1.0}, name="both")
    expected = 2 * np.array(RewardFunction(server.url)(PROMPTS, TEXTS)) + length(TEXTS)
    assert both(PROMPTS, TEXTS) == pytest.approx(expected, abs=1e-5)
    again = pickle.loads(pickle.dumps(both))
    assert again(PROMPTS, TEXTS) == pytest.approx(expected, abs=1e-5)


# In other processes


WORKER = """
import json, pickle, sys
functions, arguments = pickle.load(sys.stdin.buffer)
print(json.dumps([[function.__name__, function(*arguments)] for function in functions]))
"""


def in_a_worker(functions, cwd):
    """The name and the rewards of each function, in a fresh process that runs in another folder."""
    stdin = pickle.dumps((functions, (PROMPTS, TEXTS)))
    result = subprocess.run([sys.executable, "-c", WORKER], input=stdin, capture_output=True, cwd=cwd, check=False)
    assert result.returncode == 0, result.stderr.decode()
    return json.loads(result.stdout)


def test_functions_reward_the_same_in_other_processes(scorer, make_model, tokenizer, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    by_path, whole = RewardFunction("my-reward", clip=50, name="mine"), RewardFunction(scorer)
    padded = RewardFunction(RewardModel(make_model(), tokenizer), name="padded")
    expected = {each.__name__: each(PROMPTS, TEXTS) for each in (by_path, whole, padded)}
    assert len(pickle.dumps(by_path)) < 1_000  # a path is loaded where the function is called
    assert len(pickle.dumps(whole)) > 10_000
    assert scorer.engine.layout == "forest"
    padded.reward_model.engine.layout = "padded"  # as if the layouts had differed: its attention stays that of forests
    (elsewhere := tmp_path / "elsewhere").mkdir()
    for name, rewards in in_a_worker((by_path, whole, padded), elsewhere):
        assert rewards == pytest.approx(expected.pop(name), abs=2e-6)
    assert not expected


# Several


def test_a_combination_is_the_weighted_sum(scorer):
    both = combine({RewardFunction(scorer): 2.0, length: -0.5})
    expected = 2 * np.array(RewardFunction(scorer)(PROMPTS, TEXTS)) - 0.5 * np.array(length(TEXTS))
    assert both(prompts=PROMPTS, completions=TEXTS, answer=["?"] * 3) == pytest.approx(expected, abs=1e-5)
    assert both.__name__ == "combined"


def test_parts_of_a_combination_may_be_conservative(ensemble_folder):
    model = RewardModel.from_pretrained(ensemble_folder)
    parts = [RewardFunction(model, name="mean"), RewardFunction(model, aggregate="mean-std", k=2.0, name="careful")]
    mean, careful = (part(PROMPTS, TEXTS) for part in parts)
    combined = combine(dict(zip(parts, [1.0, 0.5], strict=True)))
    assert combined(PROMPTS, TEXTS) == pytest.approx(np.array(mean) + 0.5 * np.array(careful), abs=1e-5)
    assert pickle.loads(pickle.dumps(parts[1]))(PROMPTS, TEXTS) == pytest.approx(careful, abs=1e-5)
    assert careful != mean


def test_a_model_or_a_path_may_stand_for_its_function(scorer, folder):
    by_hand = combine({RewardFunction(folder): 1.0})(PROMPTS, TEXTS)
    for part in (str(folder), folder, scorer):
        assert combine({part: 1.0})(PROMPTS, TEXTS) == pytest.approx(by_hand, abs=2e-6)


def test_each_part_is_logged_where_the_trainer_takes_it():
    metrics, extra = {}, {}
    both = combine({length: 1.0, functools.partial(polite): 0.2}, name="both")
    both(PROMPTS, TEXTS, log_metric=metrics.__setitem__, log_extra=extra.__setitem__)
    assert metrics == pytest.approx({"rewards/length/mean": np.mean(length(TEXTS)), "rewards/polite/mean": 1 / 3})
    assert extra == {"length": length(TEXTS), "polite": polite(TEXTS)}


def test_each_part_is_logged_in_python_where_the_trainer_takes_nothing(caplog):
    with caplog.at_level(logging.INFO, "plaudit"):
        combine({polite: 1.0})(PROMPTS, TEXTS)
    assert "combined: polite 0.3333" in caplog.text


def test_parts_get_every_column_and_may_be_combinations():
    def seen(prompts, completions, answer, log_metric, **columns):
        log_metric("mine", 7.0)
        return [float(prompts[0] == PROMPTS[0] and answer[n] == n) for n in range(3)]

    metrics = {}
    nested = combine({combine({seen: 2.0}, name="inner"): 3.0})
    assert nested(PROMPTS, TEXTS, answer=[0, 1, 5], log_metric=metrics.__setitem__) == [6.0, 6.0, 0.0]
    assert metrics == {"mine": 7.0, "rewards/seen/mean": 2 / 3, "rewards/inner/mean": 4 / 3}


def test_a_combination_pickles(folder, tmp_path):
    both = combine({RewardFunction(folder): 1.0, math.hypot: 0.0})
    again = pickle.loads(pickle.dumps(both))
    assert again.names == ["my-reward", "hypot"]


async def later(prompts, completions, **columns):
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({}, "expected one or more"),
        ({length: math.nan}, "expected a finite weight for 'length', got nan"),
        ({length: 1.0, functools.partial(length): 1.0}, "two parts are called 'length'"),
        ({5: 1.0}, "got a int"),
        ([length, polite], r"expected weights by reward function, {function: 1.0}, got \[<function length"),
    ],
)
def test_a_combination_that_cannot_work_is_refused_at_once(parts, said):
    with pytest.raises(ConfigError, match=said):
        combine(parts)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([1.0, None, 1.0], "rule: expected a finite reward, but that of completion 1 is None.* return 0.0"),
        ([1.0, 1.0, math.nan], "that of completion 2 is nan"),
        (iter([1.0, 1.0, math.nan]), "that of completion 2 is nan"),
        ([1.0, 1.0], "rule: expected 3 rewards, one for each completion, got 2"),
        (None, "rule: expected a list of 3 numbers, got None"),
        (1.0, "rule: expected a list of 3 numbers, got 1.0"),
        ([[1.0], [2.0], [3.0]], r"rule: expected a list of 3 numbers, got \[\[1.0\]"),
        (["good", "bad", "good"], "rule: expected a list of 3 numbers, got .'good'"),
    ],
)
def test_a_part_that_leaves_one_out_is_an_error_that_names_it(answer, said):
    def rule(**columns):
        return answer

    with pytest.raises(DataError, match=said):
        combine({rule: 1.0})(PROMPTS, TEXTS)


@pytest.mark.filterwarnings("ignore:coroutine")
def test_an_asynchronous_part_is_an_error_that_names_it():
    with pytest.raises(DataError, match="later: expected a list of 3 numbers, got <coroutine object"):
        combine({later: 1.0})(PROMPTS, TEXTS)


def test_it_scores_as_plain_transformers_scores_the_rendering_of_training(folder):
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    function = RewardFunction(folder)
    tokenizer = function.reward_model.tokenizer
    for prompt, completion in zip(PROMPTS, TEXTS, strict=True):
        ids = torch.tensor([[*tokenizer(prompt + completion)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            assert function([prompt], [completion]) == pytest.approx([plain(ids).logits.item()], abs=2e-6)
