"""Kill trainings at random moments, resume each, and compare what they end in with a run that was left alone.

    python benchmarks/faults.py [--kills 20] [--seed 0] [--folder DIR]

One process imports everything and then forks a training for each start, before it has run a thread of its own: an
import of torch and transformers takes seconds, and the trainings here one or two. Every training is a process that
makes its model, tokenises its rows, resumes from the newest checkpoint of its folder, and is ended by SIGKILL. In turn:

- at any moment of a run;
- in a save: as soon as a checkpoint is seen being written, after a random moment, and up to ten milliseconds later;
- in the last save: the same for the files of the final model.

Each is then resumed and left to end; every fourth is killed once more before. What must be the same as in the run that
was never killed, byte for byte: the final model; optimiser, scheduler and random state of the last checkpoint; the log.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from results import add_output, write_results
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForSequenceClassification, set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from plaudit import RewardConfig, RewardTrainer
from plaudit.checkpoint.integrity import check_checkpoint, incomplete_checkpoints, last_complete_checkpoint

WORDS = [f"word{number}" for number in range(60)]
STEPS = 60
STAGED = ("_saving-", "_saved-", "_moving-")  # names of the final model's files on their way


def tokenizer():
    special = {"<pad>": 0, "<eos>": 1}
    vocabulary = special | {word: number for number, word in enumerate(WORDS, len(special))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def train(folder: Path) -> None:
    """One start of the training in this folder: from its newest checkpoint, if there is one, to the end."""
    draw = random.Random(7)
    rows = [
        {side: " ".join(draw.choices(WORDS, k=draw.randint(4, 20))) for side in ("prompt", "chosen", "rejected")}
        for _ in range(STEPS * 2)
    ]
    set_seed(0)
    model = Qwen3ForSequenceClassification(
        Qwen3Config(
            vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, num_labels=1, attention_dropout=0.1,
        )
    )  # fmt: skip
    trainer = RewardTrainer(
        model=model,
        processing_class=tokenizer(),
        args=RewardConfig(
            str(folder), use_cpu=True, bf16=False, num_train_epochs=2, per_device_train_batch_size=4, save_steps=1,
            save_strategy="steps", save_total_limit=2, eval_strategy="steps", eval_steps=10, logging_steps=5,
            learning_rate=1e-3, disable_dropout=False, report_to="none", disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:16]),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder) is not None)
    trainer.save_model()


def start(folder: Path) -> int:
    """A process that trains; its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with open(os.devnull, "w") as quiet:
            os.dup2(quiet.fileno(), 1)
        train(folder)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


@dataclass
class Kill:
    """Where one start was killed, and what it left."""

    aim: str
    seconds: float
    step: int
    half_way: list[str]


def kill_once(folder: Path, draw: random.Random, length: float, aim: str) -> Kill | None:
    """Start a training and kill it; `None` if it had ended before."""
    begun, child = time.monotonic(), start(folder)
    # What to wait for: nothing but the moment, a folder being written after it, or the last one.
    pause = 0 if aim == "last save" else draw.uniform(0, length)
    watched = {"any": (), "a save": ("checkpoint-",), "last save": STAGED}[aim]
    ended = 0
    while not ended and (time.monotonic() - begun < pause or (watched and not unfinished(folder, watched))):
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        time.sleep(draw.uniform(0, 0.01) if watched else 0)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        return None
    newest = last_complete_checkpoint(folder)
    if newest is not None:
        check_checkpoint(newest)  # whatever the moment, a checkpoint with its marker is whole
    step = json.loads(Path(newest, "trainer_state.json").read_text())["global_step"] if newest else 0
    return Kill(aim, time.monotonic() - begun, step, unfinished(folder))


def unfinished(folder: Path, names: tuple[str, ...] = ("checkpoint-", *STAGED)) -> list[str]:
    """Return the incomplete checkpoints and the staged folders of the final model, of those with such names."""
    try:
        found = [name for name in os.listdir(folder) if name.startswith(STAGED)]
        found += [path.name for path in incomplete_checkpoints(folder)]
    except FileNotFoundError:
        return []
    return sorted(name for name in found if name.startswith(names))


def left_alone(folder: Path) -> float:
    """Let a training run to its end; the seconds it took."""
    begun = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(start(folder), 0)[1])
    if code != 0:
        raise SystemExit(f"the training in {folder} ended with {code}")
    return time.monotonic() - begun


def fingerprint(folder: Path) -> dict[str, str]:
    """What the run has ended in: its model and its last checkpoint, file by file."""
    last = Path(get_last_checkpoint(str(folder)) or folder)
    files = [folder / "model.safetensors", folder / "config.json"]
    files += [last / name for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")]
    prints = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    timed = ("runtime", "per_second", "flos", "time")
    history = [{name: value for name, value in entry.items() if not name.endswith(timed)} for entry in history]
    return prints | {"log": hashlib.sha256(json.dumps(history).encode()).hexdigest()[:16]}


def run(kills: int, seed: int, root: Path, output: Path | None) -> bool:
    """Print the table and write the figures; whether all ended the same."""
    draw = random.Random(seed)
    left_alone(root / "whole")
    length = left_alone(root / "again")  # the first start is slower
    expected = fingerprint(root / "whole")
    print(
        f"uninterrupted: {length:.1f} s; twice {'the same' if expected == fingerprint(root / 'again') else 'NOT EQUAL'}"
    )
    print(f"\n{'':2} {'killed in':9} {'after':>6} {'newest':>6}  {'found half-way':36} resumed")
    equal, number, starts = 0, 0, 0
    while number < kills:
        folder, starts = root / f"killed-{starts}", starts + 1
        aims = ["any", "a save", "last save"][number % 3 :][:1] + ["any"] * (number % 4 == 3)
        done = [kill_once(folder, draw, length, aim) for aim in aims]
        if done[0] is None:  # the moment was after its end
            continue
        number += 1
        left_alone(folder)
        found, rest = fingerprint(folder), unfinished(folder)
        different = [name for name, value in found.items() if value != expected[name]] + rest
        equal += not different
        for place, kill in enumerate(kill for kill in done if kill is not None):
            outcome = ("the same" if not different else f"DIFFERENT: {different}") if place == 0 else "(killed again)"
            half = ", ".join(kill.half_way)
            print(f"{number:2} {kill.aim:9} {kill.seconds:4.1f} s {kill.step:6}  {half:36} {outcome}")
    write_results(output, [{"killed and resumed": kills, "ended as the uninterrupted one": equal}])
    print(f"\n{equal} of {kills} killed and resumed trainings ended as the uninterrupted one, byte for byte")
    return equal == kills


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work, and to leave what was made; else a temporary one")
    add_output(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    disable_progress_bar()
    set_verbosity_error()
    sys.stdout.reconfigure(line_buffering=True)
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.folder or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        sys.exit(0 if run(arguments.kills, arguments.seed, root, arguments.output) else 1)
