"""Measure what an uncertainty costs in scoring: five member heads, and a Laplace posterior of one head.

The model is a decoder of 23 million random weights with 512 features, on one thread of the CPU in float32. Texts of 20
to 60 tokens run by themselves, and 16 responses of 10 tokens run on a shared prompt of 100 tokens: the fewer tokens a
reward takes, the more a head weighs. The heads take turns, and the median of the ratios to the head alone counts, in
seconds of the processor. Usage: python benchmarks/uncertainty_cost.py
"""

import argparse
import time

import numpy as np
import torch
from results import add_output, write_results
from transformers import Qwen3Config, Qwen3ForSequenceClassification, set_seed

from plaudit.engine import ScoringEngine
from plaudit.models.laplace_head import LaplaceHead
from plaudit.models.member_heads import MemberHeads
from plaudit.models.reward_head import attach_uncertainty

HIDDEN = 512


def make_model():
    """A reward model with random weights; their values do not matter for the time."""
    set_seed(0)
    config = Qwen3Config(
        vocab_size=8192, hidden_size=HIDDEN, intermediate_size=3 * HIDDEN, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    return Qwen3ForSequenceClassification(config)


def workloads(generator):
    """Lists of sequences by name."""

    def ids(count):
        return generator.integers(1, 8192, count).tolist()

    prompts = [ids(100) for _ in range(6)]
    return {
        "100 texts": [ids(generator.integers(20, 60)) for _ in range(100)],
        "16 responses for each of 6 prompts": [prompt + ids(10) for prompt in prompts for _ in range(16)],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    add_output(parser)
    arguments, rows = parser.parse_args(), []
    torch.set_num_threads(1)
    model = make_model()
    engine = ScoringEngine(model, max_tokens_per_batch=4096)
    heads = {
        "one head": None,
        "5 members": MemberHeads(torch.randn(5, HIDDEN)),
        "Laplace": LaplaceHead(torch.randn(HIDDEN, HIDDEN), torch.randn(HIDDEN), num_samples=64),
    }
    for workload, sequences in workloads(np.random.default_rng(0)).items():
        seconds = {name: [] for name in heads}
        for turn in range(arguments.rounds + 1):
            for name in np.roll(list(heads), turn).tolist():
                attach_uncertainty(model, heads[name])
                started = time.process_time()
                engine.score_columns(sequences)
                seconds[name].append(time.process_time() - started)
        alone = np.array(seconds["one head"][1:])  # the first round settles the layout
        for name, measured in seconds.items():
            ratio = np.median(np.array(measured[1:]) / alone)
            print(f"{workload:36} {name:10} {ratio:.3f} of one head's time")
            rows.append({"workload": workload, "head": name, "of one head's time": ratio})
    write_results(arguments.output, rows)


if __name__ == "__main__":
    main()
