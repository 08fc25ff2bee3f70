"""Speed and memory of scoring with Plaudit, with TRL's reward-model path and with transformers' pipeline.

Each scores the same conversations with the same saved model in a process of its own:

- `plaudit`: `RewardModel.from_pretrained(path).score(conversations)`.
- `trl`: as TRL's GRPO treats a reward model's path: load it with `num_labels=1`, render with its chat template, pad one
  generation batch of 16 on the right, take `logits[:, 0]`; in the order given.
- `pipeline`: transformers' text-classification pipeline, batches of 16, sorted by length, raw scores.

Workloads: `best_of_16` (prompts of the file, each with 16 replies drawn from the whole file) and the pairs of files.
The rewards must agree; the largest difference is printed. The fastest of `--repeats` passes over the data counts.

Usage: python benchmarks/score_speed.py [--data FOLDER] [--rows 100] [--groups 25] [--repeats 2] [--device cpu]
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from machine import device_name, now, peak_memory, start_measuring_memory
from results import add_output, as_tables, write_results
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
from transformers.utils.logging import disable_progress_bar
from workload import read_rows, write_reward_model

from plaudit import RewardModel

BATCH = 16


def plaudit_scorer(path, device):
    return RewardModel.from_pretrained(path, device=device).score


def trl_scorer(path, device):
    """Return a scorer with the calls of `GRPOTrainer.__init__` and `_calculate_rewards` of TRL 1.16."""
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id

    @torch.inference_mode()
    def score(conversations):
        rewards = []
        for start in range(0, len(conversations), BATCH):
            texts = [tokenizer.apply_chat_template(each, tokenize=False) for each in conversations[start:][:BATCH]]
            inputs = tokenizer(
                text=texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
            ).to(device)
            rewards.append(model(**inputs).logits[:, 0].float().cpu())
        return torch.cat(rewards).numpy()

    return score


def pipeline_scorer(path, device):
    """Return a scorer by transformers' pipeline, with the texts sorted by length."""
    classify = pipeline("text-classification", model=str(path), tokenizer=str(path), device=device)
    tokenizer = classify.tokenizer

    def score(conversations):
        texts = [tokenizer.apply_chat_template(each, tokenize=False) for each in conversations]
        order = sorted(range(len(texts)), key=lambda n: len(texts[n]), reverse=True)
        outputs = classify(
            [texts[n] for n in order], batch_size=BATCH, function_to_apply="none", add_special_tokens=False
        )
        rewards = np.empty(len(texts), dtype=np.float32)
        rewards[order] = [output["score"] for output in outputs]
        return rewards

    return score


SCORERS = {"plaudit": plaudit_scorer, "trl": trl_scorer, "pipeline": pipeline_scorer}


def run_once(name, path, data, result, repeats, device):
    """Score in this process, and write seconds, bytes and rewards to a file."""
    disable_progress_bar()
    conversations = json.loads(Path(data).read_text())
    score = SCORERS[name](path, device)
    score(conversations[:BATCH])  # the first call compiles kernels
    before = start_measuring_memory(device)
    seconds = []
    for _ in range(repeats):
        start = now(device)
        rewards = score(conversations)
        seconds.append(now(device) - start)
    figures = {"seconds": min(seconds), "memory": peak_memory(device) - before, "rewards": rewards.tolist()}
    Path(result).write_text(json.dumps(figures))


def best_of_groups(rows, groups):
    """Return conversations of `groups` prompts with 16 replies each, drawn from all replies of the rows."""
    drawn = random.Random(0)
    replies = [row[side] for row in rows for side in ("chosen", "rejected")]
    return [row["prompt"] + reply for row in drawn.sample(rows, groups) for reply in drawn.sample(replies, BATCH)]


def pairs_of(rows, count):
    return [row["prompt"] + row[side] for row in rows[:count] for side in ("chosen", "rejected")]


def compare(name, conversations, model, scratch, options):
    """Return a row for each library, with its seconds as a multiple of Plaudit's."""
    data = scratch / "conversations.json"
    data.write_text(json.dumps(conversations))
    figures = {}
    for scorer in SCORERS:
        result = scratch / f"{scorer}.json"
        command = [sys.executable, __file__, "--once", scorer, str(model), str(data), str(result)]
        command += ["--repeats", str(options.repeats), "--device", options.device]
        subprocess.run(command, check=True)
        figures[scorer] = json.loads(result.read_text())
    own = figures["plaudit"]
    return [
        {
            "workload": name,
            "scorer": scorer,
            "conversations/s": len(conversations) / found["seconds"],
            "seconds, of Plaudit's": found["seconds"] / own["seconds"],
            "GB above loaded": found["memory"] / 1e9,
            "apart by": np.abs(np.array(found["rewards"]) - np.array(own["rewards"])).max(),
        }
        for scorer, found in figures.items()
    ]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--groups", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    add_output(parser)
    parser.add_argument("--once", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        return run_once(*options.once, options.repeats, options.device)
    harmless, summaries = (read_rows(options.data / f"{name}.jsonl.gz") for name in ("hh_harmless", "summedits"))
    random.Random(0).shuffle(harmless)
    random.Random(0).shuffle(summaries)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        size = write_reward_model(scratch / "model", harmless, hidden=options.hidden, layers=options.layers)
        print(f"{size / 1e6:.0f}M parameters, float32, {device_name(options.device)}, torch {torch.__version__}\n")
        workloads = {
            "best of 16, hh_harmless": best_of_groups(harmless, options.groups),
            "pairs, hh_harmless": pairs_of(harmless, options.rows),
            "pairs, summedits": pairs_of(summaries, options.rows),
        }
        measured = [
            row
            for name, conversations in workloads.items()
            for row in compare(name, conversations, scratch / "model", scratch, options)
        ]
    print(as_tables(measured))
    write_results(options.output, measured)
    return None


if __name__ == "__main__":
    main()
