"""Kill `plaudit score` at chosen moments, resume it, and compare its output with that of an uninterrupted run.

    python benchmarks/score_kills.py [--rows 100000] [--kills 3] [--seed 0] [--folder DIR]

One process imports everything and then forks a run of the command for each start, before it starts a thread of its own.
The rows are texts, conversations, pairs and groups, and some that cannot be scored. The same run is killed by SIGKILL
several times: at any moment, while a chunk is being written, and while the chunks are being joined. What must hold:

- the output and the file of rejected rows equal those of the uninterrupted run, byte for byte;
- no start scores a chunk that was complete when it began;
- memory does not grow with the rows: it is printed for a tenth of them and for all.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from results import add_output, write_results
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForSequenceClassification, set_seed
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from plaudit.cli import cli
from plaudit.scoring.worker import Worker

WORDS = [f"word{number}" for number in range(60)]
TEMPLATE = "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}"
GROWTH = 32  # MiB that memory may differ by
AIMS = ("any", "a chunk", "the join")


def make_model(folder):
    special = {"<pad>": 0, "<eos>": 1, "user": 2, "assistant": 3}
    vocabulary = special | {word: number for number, word in enumerate(WORDS, len(special))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", chat_template=TEMPLATE
    ).save_pretrained(folder)
    set_seed(0)
    config = Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    model = Qwen3ForSequenceClassification(config)
    torch.nn.init.normal_(model.score.weight, std=0.5)
    model.save_pretrained(folder)


def make_rows(path, count):
    draw = random.Random(7)

    def text():
        return " ".join(draw.choices(WORDS, k=draw.randint(3, 12)))

    def row(number):
        prompt = text()
        return {"number": number} | draw.choice(
            [
                {"text": f"{prompt} {text()}"},
                {"prompt": prompt, "completion": f" {text()}"},
                {"prompt": prompt, "chosen": f" {text()}", "rejected": f" {text()}"},
                {"prompt": prompt, "completions": [f" {text()}" for _ in range(3)]},
                {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": text()}]},
            ]
        )

    with open(path, "w", encoding="utf-8") as lines:
        for number in range(count):
            broken = draw.random() < 0.001
            lines.write('{"text": "half a\n' if broken else json.dumps(row(number)) + "\n")


def start(folder, rows, output):
    """Fork a run of the command; it appends the number of each chunk that it scores to `scored` in the folder."""
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    score = Worker.score

    def noted(worker, chunk, on_batch):
        with open(folder / "scored", "a") as numbers:
            numbers.write(f"{chunk.number}\n")
        return score(worker, chunk, on_batch)

    Worker.score = noted
    code = 1
    try:
        arguments = [rows, "--model", folder / "model", "--output", output, "--on_error", "skip", "--device", "cpu"]
        code = cli(["score", *map(str, arguments), "--batch_rows", "128"], standalone_mode=False) or 0
    except BaseException as error:
        print(repr(error), flush=True)
    os._exit(code)


def run_uninterrupted(folder, rows, output):
    """Let a run go to its end; return its seconds and its peak memory in MiB."""
    begun = time.monotonic()
    _, status, usage = os.wait4(start(folder, rows, output), 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"the run ended with {status}: {(folder / 'log').read_text()[-2000:]}")
    return time.monotonic() - begun, usage.ru_maxrss // 1024


def complete_chunks(working):
    return {int(path.stem) for path in working.glob("[0-9]*.json")}


def kill_once(folder, rows, output, aim, draw, chunks):
    """Start a run and kill it; return the chunks that are complete, or `None` if it had ended before."""
    working = output.with_name(f"_scoring-{output.name}")
    goal = len(complete_chunks(working)) + draw.randint(1, max(1, chunks // 5))
    child = start(folder, rows, output)
    staged = {"any": None, "a chunk": f"_0*-{child}", "the join": f"_rows-{child}"}[aim]
    ended = 0
    while not ended:
        ended, status = os.waitpid(child, os.WNOHANG)
        if aim != "the join" and len(complete_chunks(working)) < goal:
            time.sleep(0.005)
        elif staged is None or any(working.glob(staged)):
            break
    if not ended:
        time.sleep(draw.uniform(0, 0.05) if staged is None else 0)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    return (
        complete_chunks(working) if os.waitstatus_to_exitcode(status) == -signal.SIGKILL and working.exists() else None
    )


def run(count, kills, seed, folder, file):
    """Print and write the figures; return whether everything held that must hold."""
    draw = random.Random(seed)
    make_model(folder / "model")
    make_rows(folder / "rows.jsonl", count)
    make_rows(folder / "tenth.jsonl", count // 10)
    _, memory = run_uninterrupted(folder, folder / "tenth.jsonl", folder / "tenth.jsonl.gz")
    (folder / "scored").write_text("")
    seconds, most = run_uninterrupted(folder, folder / "rows.jsonl", folder / "whole.jsonl.gz")
    chunks = len((folder / "scored").read_text().split())
    print(f"{count:,} rows in {chunks:,} chunks, uninterrupted: {seconds:.1f} s, {count / seconds:,.0f} rows/s")
    print(f"peak memory: {memory:,} MiB for a tenth of the rows, {most:,} MiB for all")
    good = most - memory <= GROWTH

    output, done = folder / "killed.jsonl.gz", set()
    for number in range(kills + 1):
        (folder / "scored").write_text("")
        aim = AIMS[number % len(AIMS)] if number < kills else None
        now = None
        if aim is None:
            run_uninterrupted(folder, folder / "rows.jsonl", output)
        else:
            now = kill_once(folder, folder / "rows.jsonl", output, aim, draw, chunks)
        scored = [int(line) for line in (folder / "scored").read_text().split()]
        again = done.intersection(scored)
        good &= not again
        if aim is not None and now is None:
            print(f"the run ended before it could be killed in {aim}")
            return False
        what = f"killed in {aim}" if aim else "uninterrupted"
        print(f"{what:20} began with {len(done):4} chunks, scored {len(scored):4}, of those again: {len(again)}")
        done = now or set()
    for suffix in ("", ".rejected.jsonl"):
        one, other = ((folder / f"{name}.jsonl.gz{suffix}").read_bytes() for name in ("whole", "killed"))
        good &= one == other
        print(f"killed.jsonl.gz{suffix}: {'the same bytes' if one == other else 'DIFFERENT'} ({len(one):,})")
    row = {"rows": count, "rows/s": count / seconds, "MiB for a tenth": memory, "MiB for all": most, "kills": kills,
           "the same bytes, nothing twice, no growth": good}  # fmt: skip
    write_results(file, [row])
    return good


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="working folder, which is kept; a temporary one by default")
    add_output(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    set_verbosity_error()
    sys.stdout.reconfigure(line_buffering=True)
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.folder or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        sys.exit(0 if run(arguments.rows, arguments.kills, arguments.seed, root, arguments.output) else 1)
