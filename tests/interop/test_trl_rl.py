"""Reward models in TRL's GRPO and RLOO: by path, as a function, beside other rewards. A few steps of tiny models."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from stub_server import StubServer
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from plaudit import RewardFunction, RewardModel
from plaudit.checkpoint.verify import verify
from plaudit.scoring.reward_function import combine

trl = pytest.importorskip("trl", reason="TRL is not beside this environment; `make test` puts it there")

TRAINERS = {"GRPO": (trl.GRPOTrainer, trl.GRPOConfig), "RLOO": (trl.RLOOTrainer, trl.RLOOConfig)}
SAME = 2e-6  # float32, in other company
QUESTIONS = ["Is the sky blue?", "Is the dog lazy?", "Is two four?", "Is the fox green?"]
CHATS = [[{"role": "user", "content": question}] for question in QUESTIONS]


@pytest.fixture
def reward_folder(make_trainer, chat_rows, text_rows):
    """Train a model on conversations, or on texts, and return the folder of the run."""

    def train(kind="chat", **options):
        rows = chat_rows if kind == "chat" else text_rows
        trainer = make_trainer(train_dataset=rows, max_steps=3, learning_rate=1e-2, **options)
        trainer.train()
        trainer.save_model()
        return trainer.args.output_dir

    return train


@pytest.fixture
def policy_folder(tmp_path, tokenizer, tiny_config):
    set_seed(0)
    config = tiny_config(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    for part in (AutoModelForCausalLM.from_config(config), tokenizer):
        part.save_pretrained(tmp_path / "policy")
    return str(tmp_path / "policy")


@pytest.fixture
def reinforce(tmp_path, policy_folder):
    """A step or two of a trainer of TRL's, always from the same policy."""

    def run(kind, rewards, prompts, *, steps=2, **options):
        trainer_class, config_class = TRAINERS[kind]
        processing = {name: options.pop(name) for name in ("reward_processing_classes",) if name in options}
        config = config_class(
            str(tmp_path / kind), max_steps=steps, per_device_train_batch_size=8, num_generations=4, logging_steps=1,
            max_completion_length=6, learning_rate=1e-3, report_to="none", save_strategy="no", use_cpu=True, bf16=False,
            gradient_checkpointing=False, disable_tqdm=True, model_init_kwargs={"dtype": "float32"}, **options,
        )  # fmt: skip
        rows = Dataset.from_list([{"prompt": prompt} for prompt in prompts])
        trainer = trainer_class(policy_folder, rewards, config, train_dataset=rows, **processing)
        before = trainer.model.model.embed_tokens.weight.clone()
        trainer.train()
        assert not torch.equal(before, trainer.model.model.embed_tokens.weight)
        assert trainer.state.global_step == steps
        return trainer

    return run


def rewards_of(trainer, prompts, completions):
    """Return the rewards of completions by the trainer's own code, [N, functions]."""
    rows = [{"prompt": prompt} for prompt in prompts]
    return trainer._calculate_rewards(rows, prompts, completions, [[1]] * len(prompts)).numpy()


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_path_and_a_function_train_alike_on_messages(kind, reward_folder, reinforce):
    folder = reward_folder()
    by_path = reinforce(kind, folder, CHATS)
    by_function = reinforce(kind, RewardFunction(folder), CHATS)
    for name in ("reward", "rewards/run/mean", "rewards/run/std", "grad_norm"):
        assert logged(by_path, name) == pytest.approx(logged(by_function, name), rel=1e-4), name
        assert len(logged(by_path, name)) == 2
    assert logged(by_path, "reward_std")[0] > 0.01  # so that there is something to be alike in


@pytest.mark.parametrize("kind", TRAINERS)
def test_both_reward_the_same_completions_alike(kind, reward_folder, reinforce):
    folder = reward_folder()
    trainer = reinforce(kind, [folder, RewardFunction(folder, name="ours")], CHATS, steps=1)
    by_path, ours = (np.array(trainer._logs["rewards"][name]) for name in ("run", "ours"))
    assert by_path.std() > 0.01
    np.testing.assert_allclose(ours, by_path, atol=SAME)


@pytest.mark.parametrize("kind", TRAINERS)
def test_the_address_of_a_server_rewards_as_the_model_there(kind, reward_folder, reinforce, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = reward_folder()
    with StubServer(RewardModel.from_pretrained(folder, device="cpu"), key="secret") as server:
        function = RewardFunction(server.url, key="secret", name="remote")
        trainer = reinforce(kind, [RewardFunction(folder, name="local"), function], CHATS)
        assert server.connections == 1
    local, remote = (np.array(trainer._logs["rewards"][name]) for name in ("local", "remote"))
    assert local.std() > 0.01
    np.testing.assert_allclose(remote, local, atol=SAME)
    assert len(logged(trainer, "rewards/remote/mean")) == 2


def test_a_plain_text_that_ends_in_eos_is_rewarded_alike_and_one_without_is_not(reward_folder, reinforce, tokenizer):
    """TRL's path adds no EOS where the model was trained with one, and its generated texts come without: a gap."""
    folder = reward_folder("text")
    function = RewardFunction(folder, name="ours")
    trainer = reinforce("GRPO", [folder, function], QUESTIONS, steps=1)
    answers = [" Yes, the sky is blue", " No", " Yes, it is", " No, it is not green!"]
    by_path, ours = rewards_of(trainer, QUESTIONS, [answer + tokenizer.eos_token for answer in answers]).T
    np.testing.assert_allclose(ours, by_path, atol=SAME)
    by_path, without = rewards_of(trainer, QUESTIONS, answers).T
    np.testing.assert_allclose(without, ours, atol=SAME)  # it renders as in training, in both cases
    gap = by_path - without
    print(f"without EOS, TRL's path is off by {gap.mean():+.2f} +- {gap.std():.2f}; rewards spread by {ours.std():.2f}")
    assert np.abs(gap).min() > 0.1 * ours.std()
    assert gap.std() > 0.1 * ours.std()  # and not by the same for all, which a group's baseline would take off
    generated = trainer._logs["completion"]
    assert not any(text.endswith(tokenizer.eos_token) for text in generated)
    seen = trainer._logs["rewards"]
    assert np.abs(np.array(seen["run"]) - np.array(seen["ours"])).mean() > 0.1 * np.std(seen["ours"])


def test_an_adapters_path_works_where_its_base_has_the_same_tokenizer(reward_folder, reinforce, base_folder):
    folder = reward_folder(model=str(base_folder), peft_config=LoraConfig())
    trainer = reinforce("GRPO", [folder, RewardFunction(folder, name="ours")], CHATS, steps=1)
    theirs, ours = (np.array(rewards) for rewards in trainer._logs["rewards"].values())
    np.testing.assert_allclose(ours, theirs, atol=SAME)


def test_where_the_bases_tokenizer_differs_verify_fails_and_both_ways_out_work(reward_folder, reinforce, base_folder):
    folder = reward_folder(model=str(base_folder), peft_config=LoraConfig())
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "")
    tokenizer.save_pretrained(base_folder)

    (broken,) = verify(folder).broken
    assert broken.layer == "base tokenizer"
    assert "plaudit merge" in broken.message
    assert "reward_processing_classes" in broken.message

    function = RewardFunction(folder, name="ours")
    theirs, ours = reinforce("GRPO", [folder, function], CHATS, steps=1)._logs["rewards"].values()
    assert np.abs(np.subtract(theirs, ours)).mean() > 0.1 * np.std(ours)
    theirs, ours = reinforce(
        "GRPO", [folder, function], CHATS, steps=1,
        reward_processing_classes=[AutoTokenizer.from_pretrained(folder), None],
    )._logs["rewards"].values()  # fmt: skip
    np.testing.assert_allclose(ours, theirs, atol=SAME)


def short(completions, log_metric, **columns):
    log_metric("characters", float(np.mean([len(completion[0]["content"]) for completion in completions])))
    return [-float(len(completion[0]["content"])) for completion in completions]


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_reward_model_beside_a_rule_with_weights(kind, reward_folder, reinforce):
    """TRL's weights and a combination are the same sum; the combination logs its parts under TRL's names."""
    function = RewardFunction(reward_folder())
    apart = reinforce(kind, [function, short], CHATS, reward_weights=[1.0, 0.2])
    together = reinforce(kind, combine({function: 1.0, short: 0.2}), CHATS)
    names = ["reward", "rewards/run/mean", "rewards/short/mean", "characters", "grad_norm"]
    for name in names:
        assert logged(apart, name) == pytest.approx(logged(together, name), rel=1e-4), name
    assert logged(together, "rewards/combined/mean") == pytest.approx(logged(together, "reward"))
    run, rule, combined = (logged(together, f"rewards/{part}/mean")[0] for part in ("run", "short", "combined"))
    assert combined == pytest.approx(run + 0.2 * rule, rel=1e-5)
    assert list(together._logs["extra"]) == ["run", "short"]
    assert len(together._logs["extra"]["run"]) == len(together._logs["completion"])
