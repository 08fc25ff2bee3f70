"""Measure the cost of a prefix that two rows share: the figure behind `SHARED_TOKENS` in `plaudit.forest.trie`.

Two rows that share a prefix compute it once, which saves its tokens, and make one tree of one chain more, for which
attention computes more blocks. The rows are sized so that each couple needs one block more. (Two rows that fit into one
block together cost nothing.) Measured forward and backward through the whole model, in bf16:

- the cost of a token: a forest against one with more tokens and as many chains;
- the cost of a chain: a forest against one with more chains and as many tokens, whose rows share in couples;
- as a check, couples of rows that begin with the same n tokens, with and without sharing.

The forests take turns, and the fastest of `--rounds` rounds counts. Usage: python benchmarks/sharing_cost.py
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from results import add_output, write_results
from transformers.utils.logging import disable_progress_bar
from workload import write_base_model

from plaudit.forest.attention import enable
from plaudit.forest.partition import partition_forest
from plaudit.forest.trie import SHARED_TOKENS, TokenForest, chains_of
from plaudit.models.load import load_model
from plaudit.models.reward_head import bind_reward_forward

ROWS = 32
RESPONSE = 48  # tokens of each of a row's two
PROMPT = 64
MORE = 16  # tokens by which prompts grow, or that couples share: a multiple of 16, to which blocks are rounded up
NEVER = 1 << 30
HEADS = 8


def pairs_of_rows(generator, prompts, *, common=0):
    """Return two sequences for each prompt length, and their rows; couples of rows begin with `common` equal ids."""
    sequences, rows = [], []
    for number, length in enumerate(prompts):
        if number % 2 == 0:
            start = generator.integers(100, 200, common)
        prompt = np.concatenate([start, generator.integers(0, 100, length - common)])
        prompt[common] = number % 100  # the two rows of a couple differ here
        for response in (200, 201):
            sequences.append(np.concatenate([prompt, [response], generator.integers(0, 100, RESPONSE - 1)]))
            rows.append(number)
    return sequences, rows


def forest_of(prompts, *, common=0, share=False):
    sequences, rows = pairs_of_rows(np.random.default_rng(0), prompts, common=common)
    return TokenForest.from_sequences(sequences, rows, shared_tokens=common if share else NEVER)


def chains(forest):
    return len(chains_of(forest.position_ids, forest.subtree_end))


def blocks(forest):
    return len(partition_forest(forest.position_ids, forest.subtree_end, HEADS))


def inputs_of(forest):
    rows = {name: getattr(forest, name)[None] for name in ("input_ids", "position_ids", "subtree_end")}
    return {name: torch.from_numpy(np.ascontiguousarray(row)) for name, row in (rows | {"leaf": forest.leaf}).items()}


def seconds_of(model, forests, rounds):
    """Return the least seconds of a forward and backward pass of each forest; the first round is a warm-up."""
    batches = [inputs_of(forest) for forest in forests]
    times = [[] for _ in forests]
    for _ in range(rounds + 1):
        for batch, taken in zip(batches, times, strict=True):
            model.zero_grad()
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16):
                rewards = model(**batch).logits
            rewards.sum().backward()
            taken.append(time.perf_counter() - start)
    return [min(taken[1:]) for taken in times]


def load(folder, layers):
    base, _ = write_base_model(folder, [{"text": "no text is needed"}], hidden=64 * HEADS, layers=layers)
    model = load_model(str(base)).train()
    bind_reward_forward(model)
    enable(model, "blocks")
    return model


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--layers", type=int, default=8)
    add_output(parser)
    options, rows = parser.parse_args(), []
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        model = load(Path(folder), options.layers)

    few = forest_of([PROMPT] * ROWS)
    longer = forest_of([PROMPT + MORE] * ROWS)
    many = forest_of([PROMPT, PROMPT + MORE] * (ROWS // 2), common=MORE, share=True)
    assert len(few) == len(many)
    assert chains(few) == chains(longer) < chains(many)
    assert blocks(few) == blocks(longer)
    base, more_tokens, more_chains = seconds_of(model, [few, longer, many], options.rounds)
    token = (more_tokens - base) / (len(longer) - len(few))
    chain = (more_chains - base) / (chains(many) - chains(few))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters / 1e6:.1f}M parameters, {torch.get_num_threads()} threads, bf16, forward and backward")
    for name, forest, seconds in (("base", few, base), ("longer", longer, more_tokens), ("shared", many, more_chains)):
        sizes = f"{len(forest):5} tokens, {chains(forest):3} chains, {blocks(forest):3} blocks"
        print(f"{name:7} {sizes}: {seconds * 1e3:7.1f} ms")
    print(f"a token costs {token * 1e6:.0f} us, a chain {chain * 1e6:.0f} us: as much as {chain / token:.1f} tokens\n")
    rows.append({"us a token": 1e6 * token, "us a chain": 1e6 * chain, "tokens of a chain": chain / token})

    lengths = [length for length in (8, 16, 32, 64) if length <= 2 * SHARED_TOKENS]
    apart = [forest_of([length + PROMPT] * ROWS, common=length) for length in lengths]
    shared = [forest_of([length + PROMPT] * ROWS, common=length, share=True) for length in lengths]
    seconds = seconds_of(model, apart + shared, options.rounds)
    for number, length in enumerate(lengths):
        one, other = seconds[number], seconds[number + len(lengths)]
        print(
            f"couples with {length:2} tokens in common: {one * 1e3:7.1f} ms apart, {other * 1e3:7.1f} ms sharing "
            f"({other / one - 1:+.1%}; tokens {len(shared[number]) / len(apart[number]) - 1:+.1%})"
        )
        rows.append({"tokens in common": length, "ms apart": 1e3 * one, "ms sharing": 1e3 * other})
    write_results(options.output, rows)
    print(f"\nrows share from {SHARED_TOKENS} tokens on; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
