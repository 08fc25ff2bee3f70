"""Tiny models and tokenizers, made on the spot: no test reads the network or a file of the machine."""

import gc
import inspect
import logging
import os
import shutil
import signal
from collections import Counter
from functools import cache, partial
from itertools import chain

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A shell starts what it sends to the background with Ctrl-C ignored, and all that is started from there inherits it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen3Config,
    set_seed,
)


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` run where there is one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


def pytest_terminal_summary(terminalreporter, config):
    """With `--durations`, list the slowest files as well: `--dist loadfile` gives each file to one worker."""
    seconds = Counter()
    for report in chain.from_iterable(terminalreporter.stats.values()):
        if hasattr(report, "duration"):
            seconds[report.nodeid.split("::")[0]] += report.duration
    if count := config.option.durations:
        terminalreporter.section(f"slowest {count} files")
        for name, total in seconds.most_common(count):
            terminalreporter.write_line(f"{total:.1f}s {name}")


@pytest.fixture(autouse=True)
def own_log_levels():
    """What a command sets for its log does not reach the next test."""
    loggers = [logging.getLogger(name) for name in (None, "plaudit")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


CORPUS = [
    "The quick brown fox jumps over the lazy dog. What is two plus two? Two plus two is four, not five.",
    "user assistant system tool: Is the sky blue? Yes, the sky is blue. No, it is green! Thank you very much, sorry.",
]
CHAT_TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if shout is defined and shout %}!{% endif %}"
)


def make_tokenizer(*, pad: str | None = "<pad>", bos: str | None = None, extra: tuple[str, ...] = ()):
    """A byte-level BPE tokenizer of a few hundred tokens; with `bos`, one that writes it before every text."""
    special = [token for token in (pad, "<eos>", bos, "<|im_start|>", "<|im_end|>", *extra) if token]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=len(alphabet) + len(special) + 40,
            special_tokens=special,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token=pad, bos_token=bos, chat_template=CHAT_TEMPLATE
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *extra]})
    return tokenizer


def qwen3_config(**changes):
    return Qwen3Config(
        **{
            "vocab_size": 320,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 256,
            "pad_token_id": None,
            "tie_word_embeddings": True,
        }
        | changes
    )


@pytest.fixture
def tokenizer():
    return make_tokenizer()


def reward_model(seed: int = 0, **changes):
    """A tiny Qwen3 reward model, with a head large enough for its rewards to differ."""
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_config(qwen3_config(num_labels=1, **changes))
    torch.nn.init.normal_(model.score.weight, std=0.5)
    return model


@pytest.fixture
def make_model():
    """`reward_model`, for tests that need several."""
    return reward_model


@pytest.fixture
def base_folder(tmp_path, tokenizer):
    """A folder as the hub would give it: a causal language model in bf16, with its tokenizer."""
    set_seed(0)
    folder = tmp_path / "base"
    AutoModelForCausalLM.from_config(qwen3_config(), dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pair_rows():
    """Pairs that a small model can learn: the reply that agrees wins."""
    nouns = ["sky", "dog", "fox", "tool", "two", "four", "green", "blue", "lazy", "brown"]
    return [{"prompt": f"Is the {noun}?", "chosen": " Yes, the " + noun, "rejected": " No, it is"} for noun in nouns]


@pytest.fixture
def text_rows():
    return pair_rows()


@pytest.fixture
def chat_rows():
    nouns = ["sky", "dog", "fox", "tool"]
    return [
        {
            "prompt": [{"role": "user", "content": f"Is the {noun}?"}],
            "chosen": [{"role": "assistant", "content": f"Yes, the {noun}"}],
            "rejected": [{"role": "assistant", "content": "No"}],
        }
        for noun in nouns
    ]


@pytest.fixture(scope="session")
def new_tokenizer():
    """`make_tokenizer`, for tests that need one of another make."""
    return make_tokenizer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, new_tokenizer):
    """A reward model as a folder, with 1.5 and 0.25 as mean and standard deviation. Not to be changed: copy it."""
    set_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("models") / "model", new_tokenizer()
    config = Qwen3Config(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    config.mean, config.std = 1.5, 0.25
    model = AutoModelForSequenceClassification.from_config(config)
    torch.nn.init.normal_(model.score.weight, std=0.5)
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ensemble_folder(tmp_path_factory, model_folder):
    """The model of `model_folder` with three heads of its own. Not to be changed: copy it."""
    from plaudit.checkpoint.heads_file import SavedHeads
    from plaudit.uncertainty import MemberUncertainty

    folder = tmp_path_factory.mktemp("models") / "ensemble"
    shutil.copytree(model_folder, folder)
    model = AutoModelForSequenceClassification.from_pretrained(model_folder)
    members = torch.randn(3, model.config.hidden_size, generator=torch.Generator().manual_seed(1)) / 2
    model.score.weight.data = members.mean(0, keepdim=True)
    model.save_pretrained(folder)
    constants = MemberUncertainty(centers=(0.5, -1.0, 2.0), scales=(1.0, 2.0, 3.0), reward_std=0.75)
    SavedHeads(members, None, constants, measured_on="a test").write(folder)
    return folder


@pytest.fixture(scope="session")
def unmeasured_folder(tmp_path_factory, ensemble_folder):
    """The model of `ensemble_folder`, saved where its members could not be measured. Not to be changed: copy it."""
    from dataclasses import replace

    from plaudit.checkpoint.heads_file import SavedHeads
    from plaudit.uncertainty import UnmeasuredMembers

    folder = shutil.copytree(ensemble_folder, tmp_path_factory.mktemp("models") / "unmeasured")
    unmeasured = UnmeasuredMembers((0.0,) * 3, (1.0,) * 3, 1.0, lacking="the model")
    replace(SavedHeads.read(folder), constants=unmeasured).write(folder)
    return folder


@pytest.fixture
def tiny_config():
    """`qwen3_config`, for tests that need a model of another kind."""
    return qwen3_config


@cache
def leave_imports_alone():
    """Each `train` collects garbage, and took half a second to look through all that was imported."""
    gc.collect()
    gc.freeze()


def build_trainer(output_dir, *, trainer_class=None, **options):
    """A `RewardTrainer` of a tiny model on `pair_rows`, in float32, in order, quiet, without saving.

    It takes the trainer's arguments and those of `RewardConfig`, side by side; datasets may be lists of rows.
    """
    from plaudit import RewardConfig, RewardTrainer

    leave_imports_alone()
    own = {name: options.pop(name) for name in inspect.signature(RewardTrainer).parameters if name in options}
    own = {"train_dataset": pair_rows()} | own
    if "model" not in own:
        own = {"model": reward_model(), "processing_class": make_tokenizer()} | own
    for name in ("train_dataset", "eval_dataset"):
        if isinstance(own.get(name), list):
            own[name] = Dataset.from_list(own[name])
    quiet = {
        "output_dir": str(output_dir),
        "bf16": False,
        "use_cpu": True,  # also where there is a GPU: the numbers are compared to the last digits
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "verify_on_save": False,  # a fresh process takes seconds
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "constant",
    }
    return (trainer_class or RewardTrainer)(args=RewardConfig(**quiet | options), **own)


@pytest.fixture
def make_trainer(tmp_path):
    """`build_trainer`, with an output folder of the test's own."""
    return partial(build_trainer, tmp_path / "run")
