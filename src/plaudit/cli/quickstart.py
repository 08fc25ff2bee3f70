"""`plaudit quickstart`: the whole way from preferences to scores, in a world whose true reward is known."""

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from plaudit.data.synthetic import PreferenceWorld, SyntheticPair
    from plaudit.training.config import RewardConfig

__all__ = ["Quickstart", "command", "run_quickstart"]

TRAIN_PAIRS, TEST_PAIRS, FRESH_RESPONSES = 44_000, 5_000, 1_000
SPECIAL_TOKENS = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>"]
CHAT_TEMPLATE = "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} <eos> {% endfor %}"


@dataclass(frozen=True)
class Quickstart:
    """What came out of a run: shares of held-out pairs, except for the correlation and the time."""

    accuracy: float
    interval: tuple[float, float]
    ceiling: float
    bag_of_words: float
    longer_wins: float
    correlation: float
    seconds: float

    @property
    def way(self) -> float:
        """How far it got from chance (one half) to the ceiling, from 0 to 1."""
        return (self.accuracy - 0.5) / (self.ceiling - 0.5)


@click.command("quickstart")
@click.option("--seed", default=0, show_default=True, help="Another seed, another world's draws and another model.")
@click.option("--output_dir", default="quickstart-reward-model", show_default=True, help="Where the model is saved.")
def command(seed: int, output_dir: str) -> None:
    """Train, prove and use a small reward model on built-in data. No network, no GPU, three minutes."""
    from plaudit.cli.display import console, show_log_messages, show_table
    from plaudit.scoring.reward_model import RewardModel

    show_log_messages()
    console.print(
        f"Drawing {TRAIN_PAIRS:,} preferences between responses whose true reward is known, and training a small "
        f"decoder on them from scratch."
    )
    result = run_quickstart(seed, output_dir)
    show_table(
        f"On {TEST_PAIRS:,} held-out pairs, after {result.seconds:.0f} seconds",
        [
            ("accuracy", f"{result.accuracy:.1%} (95% interval {result.interval[0]:.1%} to {result.interval[1]:.1%})"),
            ("the ceiling", f"{result.ceiling:.1%}: people disagree, so nobody can do better"),
            ("of the way there", f"{result.way:.0%}, from chance to the ceiling"),
            ("a bag of words", f"{result.bag_of_words:.1%}, for comparison"),
            ("the longer one wins", f"{result.longer_wins:.1%}, for comparison"),
            ("rank correlation", f"{result.correlation:.2f} of learnt and true reward, {FRESH_RESPONSES:,} responses"),
        ],
    )
    reward_model = RewardModel.from_pretrained(output_dir)
    prompt, responses = "What is the capital of Japan?", ("It is Tokyo.", "It is Lima.")
    chats = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}] for response in responses
    ]
    show_table(
        f"Saved, loaded again from {output_dir}, and asked: {prompt}",
        [(response, f"{reward:+.2f}") for response, reward in zip(responses, reward_model.score(chats), strict=True)],
    )
    first = "" if shutil.which("plaudit") else f"\n  . {Path(sys.executable).with_name('activate')}"
    console.print(_NEXT.format(output=output_dir, activate=first), markup=False, soft_wrap=True)


_NEXT = """
Next, on your own preferences (rows with prompt, chosen and rejected; docs/walkthrough.md goes on from there):
{activate}
  plaudit train --model_name_or_path Qwen/Qwen3-0.6B --dataset_name my-pairs.jsonl --eval_fraction 0.1
  plaudit train --help

and in Python:

  from plaudit import RewardModel
  model = RewardModel.from_pretrained("{output}")
  model.rank([{{"role": "user", "content": "What is the capital of Japan?"}}], ["It is Lima.", "It is Tokyo."])"""


def run_quickstart(seed: int, output_dir: str) -> Quickstart:
    """Draw the data, train from scratch, evaluate, save.

    Args:
        seed: Of the data, the model and the order.
        output_dir: Where the model is saved.
    """
    from datasets import Dataset
    from transformers import PrinterCallback

    from plaudit.cli.display import LiveProgress
    from plaudit.data.synthetic import PreferenceWorld, ceiling
    from plaudit.metrics import wilson_interval
    from plaudit.training.trainer import RewardTrainer

    started = time.perf_counter()
    world = PreferenceWorld(seed)
    train, test = world.pairs(TRAIN_PAIRS), world.pairs(TEST_PAIRS, "test")
    tokenizer = _make_tokenizer(train)
    trainer = RewardTrainer(
        model=_make_model(tokenizer, seed),
        args=_make_config(seed, output_dir),
        train_dataset=Dataset.from_list([pair.row() for pair in train]),
        eval_dataset=Dataset.from_list([pair.row() for pair in test]),
        processing_class=tokenizer,
        callbacks=[LiveProgress()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    accuracy = trainer.evaluate()["eval_accuracy"]
    trainer.dataset_name = "the built-in preference world"
    trainer.save_model()
    return Quickstart(
        accuracy=accuracy,
        interval=wilson_interval(accuracy, len(test)),
        ceiling=ceiling(test),
        **_baselines(train, test),
        correlation=_correlation(world, output_dir),
        seconds=time.perf_counter() - started,
    )


def _make_tokenizer(pairs: "list[SyntheticPair]") -> "PreTrainedTokenizerBase":
    """Words and punctuation marks, without case: the world's vocabulary is small."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    texts = (text for pair in pairs for text in (pair.prompt, pair.chosen, pair.rejected))
    words.train_from_iterator(
        texts, trainers.WordLevelTrainer(vocab_size=1024, special_tokens=SPECIAL_TOKENS, show_progress=False)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", chat_template=CHAT_TEMPLATE
    )


def _make_model(tokenizer: "PreTrainedTokenizerBase", seed: int) -> "PreTrainedModel":
    """A Qwen3-shaped decoder of a third of a million parameters, its weights random."""
    from transformers import Qwen3Config, Qwen3ForSequenceClassification, set_seed

    set_seed(seed)
    return Qwen3ForSequenceClassification(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=512,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            initializer_range=0.1,  # so narrow a model learns next to nothing at first from the usual 0.02
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            num_labels=1,
        )
    )


def _make_config(seed: int, output_dir: str) -> "RewardConfig":
    from plaudit.training.config import RewardConfig

    return RewardConfig(
        output_dir,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=128,
        num_train_epochs=1,
        learning_rate=7e-4,
        warmup_steps=0.1,
        weight_decay=0.01,
        gradient_checkpointing=False,
        logging_steps=250,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
    )


def _baselines(train: "list[SyntheticPair]", test: "list[SyntheticPair]") -> dict[str, float]:
    from plaudit.evaluation.baselines import BagOfWords, longer_wins

    chosen, rejected = [pair.chosen for pair in test], [pair.rejected for pair in test]
    bag = BagOfWords().fit([pair.chosen for pair in train], [pair.rejected for pair in train])
    return {"bag_of_words": bag.accuracy(chosen, rejected), "longer_wins": longer_wins(chosen, rejected)}


def _correlation(world: "PreferenceWorld", output_dir: str) -> float:
    from plaudit.metrics import rank_correlation
    from plaudit.scoring.reward_model import RewardModel

    fresh = world.responses(FRESH_RESPONSES)
    chats = [
        [{"role": "user", "content": each.prompt}, {"role": "assistant", "content": each.response}] for each in fresh
    ]
    return rank_correlation(RewardModel.from_pretrained(output_dir).score(chats), [each.reward for each in fresh])
