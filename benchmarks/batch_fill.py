"""Measure how full `max_tokens_per_batch` fills batches: the mean share of the budget that a batch uses.

For each file, tokenised by a BPE tokenizer trained on its text: the least fill of three epochs, with batches by rows
and by prompts (`group_by_prompt`), and below it the fill that as few batches as possible would have. Usage:
python benchmarks/batch_fill.py --data FOLDER [--budgets 2048 4096 8192]
"""

import argparse
import tempfile
from itertools import product
from pathlib import Path

from datasets import Dataset, disable_progress_bars
from results import add_output, as_tables, write_results
from workload import make_tokenizer, read_rows

from plaudit import RewardConfig
from plaudit.data.tokenize import TokenizationRules, tokenize_dataset
from plaudit.training.dataloaders import make_batch_sampler, token_costs

MAX_LENGTH = 1024


def fill_of(dataset, budget, group_by_prompt, folder):
    """Return the least fill, and the fill of as few batches as the tokens could make."""
    args = RewardConfig(
        output_dir=folder, use_cpu=True, bf16=False, max_tokens_per_batch=budget, group_by_prompt=group_by_prompt
    )
    sampler = make_batch_sampler(dataset, args, "forest")
    fills = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        fills.append(sampler.fill)
    batches = fills[0] * len(sampler)
    return min(fills), batches / -(-batches // 1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default="../shared/data")
    parser.add_argument("--budgets", type=int, nargs="+", default=[2048, 4096, 8192])
    add_output(parser)
    options = parser.parse_args()
    disable_progress_bars()
    measured = []
    for path in sorted(options.data.glob("*.jsonl.gz")):
        rows = read_rows(path)
        rules = TokenizationRules(MAX_LENGTH)
        dataset, _ = tokenize_dataset(Dataset.from_list(rows), make_tokenizer(rows), rules, split="train")
        longest = int(token_costs(dataset, "forest").max())
        name = path.name.removesuffix(".jsonl.gz")
        about = {"file": name, "rows": len(dataset), "longest row": longest}
        least, best = about | {"fill": "least"}, about | {"fill": "at best"}
        with tempfile.TemporaryDirectory() as folder:
            for kind, budget in product(("rows", "prompts"), options.budgets):
                column = f"{kind}, {budget}"
                least[column] = best[column] = None
                if budget >= longest:
                    least[column], best[column] = fill_of(dataset, budget, kind == "prompts", folder)
        measured += [least, best]
    print(as_tables(measured))
    write_results(options.output, measured)


if __name__ == "__main__":
    main()
