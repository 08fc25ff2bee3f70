"""Train a small decoder from scratch on preferences whose true reward is known, and evaluate what it learns."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    TrainerCallback,
    set_seed,
)

from plaudit.errors import ConfigError
from plaudit.evaluation.baselines import BagOfWords, longer_wins
from plaudit.evaluation.evaluate import Evaluation, evaluate
from plaudit.evaluation.probes import run_probes
from plaudit.evaluation.score_files import write_scores
from plaudit.metrics import rank_correlation
from plaudit.quickstart.synthetic import PreferenceWorld, SyntheticPair, ceiling
from plaudit.scoring.reward_model import RewardModel
from plaudit.training.config import RewardConfig
from plaudit.training.trainer import RewardTrainer

if TYPE_CHECKING:
    from plaudit.evaluation.report import Report

__all__ = ["QuickstartResult", "run_quickstart"]

logger = logging.getLogger(__name__)

_LOGGED_PAIRS = 1_000  # of the held-out pairs, for the log; the saved model is evaluated on all of them
_PROBED_PAIRS = 300

_SPECIAL_TOKENS = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>"]
_CHAT_TEMPLATE = "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} <eos> {% endfor %}"
_PROMPT, _RESPONSES = "What is the capital of Japan?", ("It is Tokyo.", "It is Lima.")


@dataclass(frozen=True)
class QuickstartResult:
    """The figures of the trained model on held-out pairs, and rewards of the saved one.

    Attributes:
        pairs: Number of held-out pairs.
        accuracy: Share of pairs in which the chosen response has the greater reward.
        interval: The 95% interval of the accuracy, clustered by prompt.
        ceiling: Expected accuracy of the true reward, which is below 1 because the labels are drawn at random.
        bag_of_words: Accuracy of a model that counts words.
        longer_wins: Accuracy of preferring the longer response.
        correlation: Rank correlation of learnt and true reward over single responses.
        prompt: A question that is not in the data.
        rewards: The reward of a right and of a wrong answer to this question.
        seconds: Duration of the whole run.
        report: The page about the model; `None` where matplotlib, which draws it, is not installed.
    """

    pairs: int
    accuracy: float
    interval: tuple[float, float]
    ceiling: float
    bag_of_words: float
    longer_wins: float
    correlation: float
    prompt: str
    rewards: dict[str, float]
    seconds: float
    report: "Report | None" = None

    @property
    def share_of_ceiling(self) -> float:
        """The position of the accuracy between chance (one half, 0) and the ceiling (1)."""
        return (self.accuracy - 0.5) / (self.ceiling - 0.5)


def run_quickstart(
    seed: int,
    output_dir: str,
    *,
    train_pairs: int = 44_000,
    test_pairs: int = 5_000,
    responses: int = 1_000,
    callbacks: Sequence[TrainerCallback] = (),
) -> QuickstartResult:
    """Draw preferences, train a reward model on them from scratch, evaluate it, save it and load it again.

    Args:
        seed: Seed of the data, of the initial weights and of the order of training.
        output_dir: Folder to save the model in.
        train_pairs: Number of pairs to train on.
        test_pairs: Number of held-out pairs, whose prompts are not among those of training.
        responses: Number of held-out single responses for the rank correlation.
        callbacks: Callbacks of the trainer, to show the progress.
    """
    started = time.perf_counter()
    world = PreferenceWorld(seed)
    train, test = world.pairs(train_pairs), world.pairs(test_pairs, "test")
    trainer = _train(seed, output_dir, train, test[:_LOGGED_PAIRS], callbacks)
    with ThreadPoolExecutor(max_workers=1) as pool:
        bag_of_words = pool.submit(_bag_of_words, train, test)
        trainer.save_model()  # waits for the fresh process that verifies the model
    reward_model = RewardModel.from_pretrained(output_dir)
    rows = [pair.row() for pair in test]
    evaluation = evaluate(reward_model, rows)
    metrics = evaluation.overall
    scored = world.responses(responses)
    learnt = reward_model.score([_chat(each.prompt, each.response) for each in scored])
    rewards = reward_model.score([_chat(_PROMPT, response) for response in _RESPONSES]).tolist()
    return QuickstartResult(
        pairs=len(test),
        accuracy=metrics["accuracy"],
        interval=(metrics["accuracy_low"], metrics["accuracy_high"]),
        ceiling=ceiling(test),
        bag_of_words=bag_of_words.result(),
        longer_wins=longer_wins([pair.chosen for pair in test], [pair.rejected for pair in test]),
        correlation=rank_correlation(learnt, [each.reward for each in scored]),
        prompt=_PROMPT,
        rewards=dict(zip(_RESPONSES, rewards, strict=True)),
        report=_write_report(output_dir, trainer.state.log_history, reward_model, rows, evaluation),
        seconds=time.perf_counter() - started,
    )


def _train(
    seed: int,
    output_dir: str,
    train: list[SyntheticPair],
    test: list[SyntheticPair],
    callbacks: Sequence[TrainerCallback],
) -> RewardTrainer:
    """Train and evaluate a model, and return its trainer."""
    tokenizer = _make_tokenizer(train)
    trainer = RewardTrainer(
        model=_make_model(tokenizer, seed),
        args=_make_config(seed, output_dir),
        train_dataset=Dataset.from_list([pair.row() for pair in train]),
        eval_dataset=Dataset.from_list([pair.row() for pair in test]),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.evaluate()
    trainer.dataset_name = "the built-in preference world"
    return trainer


def _write_report(
    output_dir: str,
    log_history: list[dict[str, float]],
    reward_model: RewardModel,
    rows: list[dict[str, Any]],
    evaluation: Evaluation,
) -> "Report | None":
    """Save the scores of the held-out pairs, probe the model on a few of them, and write the page about it."""
    header = evaluation.scores.header
    named = header | {"dataset": header["dataset"] | {"path": "held-out pairs of the built-in world"}}
    scores = replace(evaluation.scores, header=named)
    write_scores(Path(output_dir, "scores.jsonl"), scores)
    try:
        from plaudit.evaluation.report import report_on_training
    except ConfigError as error:
        logger.info("No report: %s", error)
        return None
    probes = run_probes(reward_model, rows[:_PROBED_PAIRS])
    return report_on_training(output_dir, log_history, scores=[scores], rows=rows, probes=probes)


def _make_tokenizer(pairs: list[SyntheticPair]) -> PreTrainedTokenizerBase:
    """Make a tokenizer of lower-case words and punctuation marks: the world's vocabulary is small."""
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    texts = (text for pair in pairs for text in (pair.prompt, pair.chosen, pair.rejected))
    words.train_from_iterator(
        texts, trainers.WordLevelTrainer(vocab_size=1024, special_tokens=_SPECIAL_TOKENS, show_progress=False)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", chat_template=_CHAT_TEMPLATE
    )


def _make_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Make a Qwen3 decoder of a third of a million parameters with random weights."""
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
            initializer_range=0.1,  # with the usual 0.02 so narrow a model hardly learns at first
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            num_labels=1,
        )
    )


def _make_config(seed: int, output_dir: str) -> RewardConfig:
    return RewardConfig(
        output_dir,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=128,
        num_train_epochs=1,
        learning_rate=7e-4,
        warmup_steps=0.1,
        weight_decay=0.01,
        bf16=False,  # in so small a model, casts cost more than products in bf16 save
        gradient_checkpointing=False,
        logging_steps=250,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
    )


def _bag_of_words(train: list[SyntheticPair], test: list[SyntheticPair]) -> float:
    model = BagOfWords().fit([pair.chosen for pair in train], [pair.rejected for pair in train])
    return model.accuracy([pair.chosen for pair in test], [pair.rejected for pair in test])


def _chat(prompt: str, response: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
