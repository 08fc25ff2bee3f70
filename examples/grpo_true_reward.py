"""A policy trained by TRL's GRPO against a Plaudit reward model, in a world where the true reward is known.

    make rl         # or, with TRL and matplotlib installed: python examples/grpo_true_reward.py

A reward model learns from preferences (`plaudit quickstart`). A small policy learns to imitate the world's responses,
half of which are wrong. Then GRPO trains it on the learnt reward, twice: with a KL penalty that holds it near the
imitating policy (`beta`), and without one. The true reward is only measured, on held-out prompts. Both rewards are
log-odds of preference, so their gains share one scale: a learnt reward that gains more is over-optimised.
"""

import argparse
import json
import time
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, set_seed
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from plaudit import RewardFunction
from plaudit.quickstart.demonstration import run_quickstart
from plaudit.quickstart.synthetic import PreferenceWorld, true_reward

RUNS = {"held near the imitating policy (beta 0.1)": 0.1, "let loose (beta 0)": 0.0}
REWARDS = {"learnt": "tab:orange", "true": "tab:blue"}
PROMPTS_A_STEP, RESPONSES_A_PROMPT = 16, 8
QUIET = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "bf16": False, "gradient_checkpointing": False}


def true(prompts, completions, **columns):
    """Return the true rewards, as a reward function of TRL."""
    pairs = zip(prompts, completions, strict=True)
    return [true_reward(prompt[-1]["content"], completion[-1]["content"]) for prompt, completion in pairs]


def asking(prompts):
    """Return a dataset of conversational prompts."""
    return Dataset.from_list([{"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts])


def new_policy(tokenizer, seed):
    """Return a decoder of half a million parameters with random weights."""
    set_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=4, head_dim=32, max_position_embeddings=128,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, initializer_range=0.1,
        )
    )  # fmt: skip


def imitate(tokenizer, world, options):
    """Train a policy on the world's responses, right and wrong ones, and return its folder."""
    seen = world.responses(options.imitated, "train")
    answers = [[{"role": "assistant", "content": each.response}] for each in seen]
    config = SFTConfig(
        str(options.output_dir / "policy"), per_device_train_batch_size=32, num_train_epochs=1, learning_rate=1e-3,
        lr_scheduler_type="cosine", max_length=None, logging_steps=50, seed=options.seed, **QUIET,
    )  # fmt: skip
    rows = asking(each.prompt for each in seen).add_column("completion", answers)
    trainer = SFTTrainer(new_policy(tokenizer, options.seed), config, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    return config.output_dir


def reinforce(policy, beta, world, options):
    """Train a policy by GRPO on the learnt reward; return the steps and both mean rewards on held-out prompts."""
    held_out = sorted(set(world.prompts(4 * options.judged, "test")))[: options.judged]
    config = GRPOConfig(
        str(options.output_dir), max_steps=options.steps, num_generations=RESPONSES_A_PROMPT, beta=beta,
        per_device_train_batch_size=PROMPTS_A_STEP * RESPONSES_A_PROMPT, max_completion_length=48, learning_rate=3e-4,
        lr_scheduler_type="constant", reward_weights=[1.0, 0.0], eval_strategy="steps", eval_on_start=True,
        eval_steps=max(options.steps // 15, 1), per_device_eval_batch_size=128, num_generations_eval=1,
        logging_steps=10, seed=options.seed, **QUIET,
    )  # fmt: skip
    trainer = GRPOTrainer(
        policy, [RewardFunction(options.reward_model, aggregate=options.aggregate, name="learnt"), true], config,
        train_dataset=asking(world.prompts(options.steps * PROMPTS_A_STEP)), eval_dataset=asking(held_out),
    )  # fmt: skip
    trainer.train()
    seen = [entry for entry in trainer.state.log_history if "eval_rewards/true/mean" in entry]
    curves = {name: [entry[f"eval_rewards/{name}/mean"] for entry in seen] for name in REWARDS}
    return {"step": [entry["step"] for entry in seen]} | curves


def draw(runs, path):
    """Plot both rewards as gains over the imitating policy, since the rewards of a reward model have no zero."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle("GRPO against a learnt reward: mean reward on held-out prompts")
    for axes, (title, curves) in zip(figure.subplots(1, 2, sharey=True), runs.items(), strict=True):
        for name, colour in REWARDS.items():
            gains = [value - curves[name][0] for value in curves[name]]
            axes.plot(curves["step"], gains, color=colour, label=f"{name} reward", marker=".")
        axes.set(title=title, xlabel="step", ylabel="gain, in log-odds")
        axes.label_outer()
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left")
    figure.savefig(path, dpi=120)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("grpo-true-reward"), help="for the plot and the curves")
    parser.add_argument("--reward_model", type=Path, default=Path("quickstart-reward-model"), help="trained if missing")
    parser.add_argument("--aggregate", default="mean", help="for an ensemble: mean, min, mean-std or mean-var")
    parser.add_argument("--steps", type=int, default=90, help="of GRPO, in each run")
    parser.add_argument("--imitated", type=int, default=20_000, help="responses that the policy imitates first")
    parser.add_argument("--judged", type=int, default=256, help="held-out prompts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if not options.reward_model.is_dir():
        run_quickstart(options.seed, str(options.reward_model))
    tokenizer = AutoTokenizer.from_pretrained(options.reward_model)
    tokenizer.chat_template += "{% if add_generation_prompt %}<assistant> {% endif %}"
    world = PreferenceWorld(options.seed)
    policy = imitate(tokenizer, world, options)
    runs = {title: reinforce(policy, beta, world, options) for title, beta in RUNS.items()}
    (options.output_dir / "curves.json").write_text(json.dumps(runs, indent=1))
    draw(runs, options.output_dir / "curves.png")
    for title, curves in runs.items():
        print(title)
        for name in REWARDS:
            first, *_, last = curves[name]
            print(f"  {name} reward: {first:+.2f} at first, {max(curves[name]):+.2f} at best, {last:+.2f} in the end")
    print(f"{time.process_time():.0f} seconds of processor time; see {options.output_dir / 'curves.png'}")


if __name__ == "__main__":
    main()
