"""Models of the built-in world with flipped labels, and their rewards of the responses to choose from.

`ensembles.py` describes the design. Everything is kept in a folder, and what is there is not computed again.
"""

import logging
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import datasets
import numpy as np
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    PrinterCallback,
    set_seed,
)

from plaudit import RewardConfig, RewardModel, RewardTrainer
from plaudit.evaluation.laplace import fit_laplace
from plaudit.quickstart.synthetic import (
    ANSWERS,
    CLOSERS,
    FILLERS,
    OPENERS,
    REMARKS,
    TOPICS,
    PreferenceWorld,
    true_reward,
)

CHAT_TEMPLATE = "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} <eos> {% endfor %}"
RIGHT = -0.4  # true rewards of right answers are above, those of wrong ones below
FLIPPED = 0.25


@dataclass(frozen=True)
class Sizes:
    """The sizes of the benchmark; `ensembles.py` gives the reasons."""

    groups: int = 20
    members: int = 5
    posteriors: int = 2
    base_pairs: int = 32_000
    pairs: int = 2_000
    prompts: int = 64
    candidates: int = 64
    policy_groups: int = 3
    policy_steps: int = 60
    imitated: int = 20_000
    judged: int = 128
    file_rows: int | None = None
    speed_steps: int = 10


FULL = Sizes()
SHORT = Sizes(
    groups=2, members=2, posteriors=1, base_pairs=64, pairs=48, prompts=4, candidates=8, policy_groups=1,
    policy_steps=2, imitated=64, judged=8, file_rows=60, speed_steps=2,
)  # fmt: skip


def be_quiet():
    """Leave the output to the benchmark."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("plaudit").setLevel(logging.ERROR)


def chat(prompt, response):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def new_decoder(tokenizer, seed, hidden=128, layers=2):
    """Return a decoder with one label and random weights; of the world, of a third of a million parameters."""
    set_seed(seed)
    config = AutoConfig.for_model(
        "qwen3", vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, head_dim=32, max_position_embeddings=512, initializer_range=0.1,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, num_labels=1,
    )  # fmt: skip
    return AutoModelForSequenceClassification.from_config(config)


def train(model, tokenizer, rows, folder, seed, **options):
    """Train a reward model for one epoch and save it."""
    settings = {
        "per_device_train_batch_size": 16, "learning_rate": 3e-4, "warmup_steps": 0.1, "weight_decay": 0.01,
        "num_train_epochs": 1, "gradient_checkpointing": False, "bf16": False, "use_cpu": True, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "logging_steps": 1000, "verify_on_save": False, "seed": seed,
    }  # fmt: skip
    trainer = RewardTrainer(
        model=model, args=RewardConfig(str(folder), **settings | options), processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(rows),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()
    return trainer


def base_model(sizes, folder):
    """Train the base on clean pairs of a right and a wrong answer, once, and return its folder."""
    base = folder / "base"
    if not (base / "config.json").exists():
        pairs = PreferenceWorld(1000).pairs(sizes.base_pairs)
        words = Tokenizer(models.WordLevel(unk_token="<unk>"))
        words.normalizer = normalizers.Lowercase()
        words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
        special = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>"]
        texts = [text for pair in pairs for text in (pair.prompt, pair.chosen, pair.rejected)]
        words.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
            chat_template=CHAT_TEMPLATE,
        )  # fmt: skip
        rows = []
        for pair in pairs:
            row = pair.row()
            is_right = [true_reward(pair.prompt, text) > RIGHT for text in (pair.chosen, pair.rejected)]
            if is_right == [False, True]:
                row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
            if any(is_right) and not all(is_right):
                rows.append(row)
        train(new_decoder(tokenizer, 0), tokenizer, rows, base, seed=0, learning_rate=1e-3)
    return base


def flipped_rows(world, count):
    """Return training rows, a quarter of them with the wrong label."""
    rows, draw = [pair.row() for pair in world.pairs(count)], np.random.default_rng([world.seed, 25])
    for row in rows:
        if draw.random() < FLIPPED:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    return rows


def far_response(draw, text):
    """Return a response as a policy may find it: a draw of the world with one to three changes."""
    changes = draw.permutation(5)[: draw.integers(1, 4)]
    sentences = [*OPENERS, *CLOSERS, *FILLERS, *(remark.format(topic) for remark in REMARKS for topic in TOPICS)]
    if 0 in changes:  # courtesies without an answer
        text = " ".join(draw.choice([*OPENERS, *CLOSERS], draw.integers(1, 5)))
    if 1 in changes:  # several answers at once
        text += "".join(f" It is {answer}." for answer in draw.choice(ANSWERS, draw.integers(1, 4)))
    if 2 in changes:  # up to eight further sentences
        text += "".join(f" {sentence}" for sentence in draw.choice(sentences, draw.integers(2, 9)))
    if 3 in changes:  # up to 60 random words
        words = sorted({word for sentence in [*sentences, *ANSWERS] for word in sentence.strip(".").split()})
        text += " " + " ".join(draw.choice(words, draw.integers(5, 61))) + "."
    return text.replace(".", "!!!") if 4 in changes else text


def candidates(world, sizes):
    """Return texts and true rewards of both sets for each prompt: prompts, and texts and rewards [P, 2 * N]."""
    drawn = world.prompts(50 * sizes.prompts, "test")
    prompts = list(dict.fromkeys(drawn))[: sizes.prompts]
    draw = np.random.default_rng([world.seed, 64])
    texts = []
    for prompt in prompts:
        own = [each.response for each in world.candidates(prompt, sizes.candidates)]
        far = [each.response for each in world.candidates(prompt, 2 * sizes.candidates)[sizes.candidates :]]
        texts.append(own + [far_response(draw, text) for text in far])
    true = [[true_reward(prompt, text) for text in row] for prompt, row in zip(prompts, texts, strict=True)]
    return prompts, texts, np.array(true)


def group_world(group):
    return PreferenceWorld(2000 + group)


def group_folder(folder, group):
    return folder / f"group-{group:02d}"


def small_head(base, seed, members):
    """Return the base with one new head that is as small as the mean of the members' new heads."""
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.score.weight.data.normal_(0, model.config.initializer_range / members**0.5)
    return model


def reference_length(sizes):
    """Return the number of sequences on which members are centred and scaled: both responses of 500 training pairs."""
    return 2 * min(sizes.pairs, 500)


def reference_sequences(rows):
    return [row["prompt"] + row[side] for row in rows[:500] for side in ("chosen", "rejected")]


def prepare_group(sizes, folder, group):
    """Train the models of a group and keep their rewards: of reference sequences, then of the candidates."""
    be_quiet()
    world, place, base = group_world(group), group_folder(folder, group), base_model(sizes, folder)
    rows = flipped_rows(world, sizes.pairs)
    prompts, texts, true = candidates(world, sizes)
    chats = [chat(prompt, text) for prompt, row in zip(prompts, texts, strict=True) for text in row]
    sequences = reference_sequences(rows) + chats
    np.save(_made(place) / "true.npy", true)
    tokenizer = AutoTokenizer.from_pretrained(base)
    posteriors = [f"seed-{seed}" for seed in range(sizes.posteriors)]
    for name in ["heads", "small-head", *(f"seed-{seed}" for seed in range(sizes.members))]:
        model, seed = place / name, 100 * group
        if not (model / "config.json").exists():
            if name == "small-head":
                train(small_head(base, seed, sizes.members), tokenizer, rows, model, seed)
            elif name == "heads":
                train(str(base), tokenizer, rows, model, seed, num_heads=sizes.members, reinit_head=True)
            else:
                train(str(base), tokenizer, rows, model, seed + int(name.split("-")[1]), reinit_head=True)
        if not (model / "columns.npy").exists():
            reward_model = RewardModel.from_pretrained(model)
            if name in posteriors:
                fit_laplace(reward_model, rows)
            np.save(model / "columns.npy", reward_model.score(sequences, return_details=True).columns)


def each_in_its_process(function, jobs, workers):
    """Yield the results of a function for lists of arguments, in order; with one worker in this process."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if workers == 1:
        yield from (function(*job) for job in jobs)
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        yield from pool.map(function, *zip(*jobs, strict=True))


def prepare_groups(sizes, folder, workers):
    """Train and score what is not there yet."""
    be_quiet()
    base_model(sizes, _made(folder))
    jobs = [(sizes, folder, group) for group in range(sizes.groups)]
    for group, _ in enumerate(each_in_its_process(prepare_group, jobs, workers)):
        print(f"group {group + 1} of {sizes.groups} is there", flush=True)


def _made(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder
