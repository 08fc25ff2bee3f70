"""Compare the first forward of a process with the second one and with the forest, module by module.

The script runs `plaudit quickstart` up to where training would begin; by then `settle_vector_kernels` has ended the
race that `benchmarks/first_cosine.py` explains. Each of `--processes` forks, in which no second thread has run yet,
scores the first four pairs in float32: padded, padded again, and as a forest. The two padded runs must agree to the
bit, and the forest with both up to the rounding of float32. With `--by_hand` the second of two threads gets the coarse
kernel in every process, as if it had lost the race: the rotary tables of the first run are coarse, and its rewards of
size 1.02 are off by up to 1.66e-4. The script exits with 1 if a first forward differed from the second.

Usage: python benchmarks/first_forward.py [--processes 100] [--rows 44000] [--keep_cache] [--by_hand]
"""

import sys
import tempfile
from contextlib import contextmanager, nullcontext

import torch
from first_cosine import coarse_kernels, describe_machine, in_fork, parse_options, prepare
from results import write_results

PAIRS = 4  # Plaudit compares the layouts on as many
SAME = "the first forward equals the second"


def run(model, inputs):
    """Return the rewards [N], and the outputs of all modules without children by name."""
    outputs = {}

    def keep(module, _, output):
        for number, part in enumerate(output if isinstance(output, tuple) else (output,)):
            outputs[f"{names[module]}[{number}]"] = part.clone()

    names = {module: name for name, module in model.named_modules() if not list(module.children())}
    hooks = [module.register_forward_hook(keep) for module in names]
    with torch.no_grad():
        rewards = model(**inputs).logits.squeeze(-1)
    for hook in hooks:
        hook.remove()
    return rewards, outputs


@contextmanager
def second_thread_loses():
    """Let the second half of every cosine be coarse for a while."""
    accurate = torch.Tensor.cos

    def cos(tensor):
        right = accurate(tensor).flatten()
        with coarse_kernels():
            coarse = accurate(tensor).flatten()
        half = len(right) // 2
        return torch.cat([right[:half], coarse[half:]]).view_as(tensor)

    torch.Tensor.cos = cos
    try:
        yield
    finally:
        torch.Tensor.cos = accurate


def compare(trainer, options):
    """Return how far the first forward of this process lies from the second and from the forest, as text."""
    from plaudit.models.inputs import forest_inputs, padded_inputs

    torch.set_num_threads(options.threads)
    rows = trainer.train_dataset.select(range(PAIRS)).to_list()
    sequences = [row[side] for side in ("chosen_ids", "rejected_ids") for row in rows]  # the collator's order
    padded, forest = padded_inputs(sequences, pad=0), forest_inputs(sequences, [*range(PAIRS)] * 2)
    model = trainer.model.eval()
    prepare(keep_cache=options.keep_cache, remedy=False)
    with second_thread_loses() if options.by_hand else nullcontext():
        first, outputs = run(model, padded)
    second, outputs_again = run(model, padded)
    third, _ = run(model, forest)
    text = (
        f"rewards of size {second.square().mean().sqrt():.3g}; second padded against forest "
        f"{(second - third).abs().max():.3g}; "
    )
    if torch.equal(first, second):
        return text + SAME
    text += f"first padded against second {(first - second).abs().max():.3g}"
    differences = {name: (outputs[name] - outputs_again[name]).abs().max().item() for name in outputs}
    return text + "".join(f"\n    {name:44} {value:.3g}" for name, value in differences.items() if value)


def main():
    from plaudit import RewardTrainer
    from plaudit.quickstart.demonstration import run_quickstart

    parser = parse_options(__doc__, 100)
    parser.add_argument("--rows", type=int, default=44_000, help="pairs of the training split")
    parser.add_argument("--by_hand", action="store_true")
    options = parser.parse_args()
    options.threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a process with threads cannot be forked safely

    def train(trainer):
        differed = 0
        for number in range(options.processes):
            text = in_fork(lambda: compare(trainer, options))
            differed += not text.endswith(SAME)
            if number == 0 or not text.endswith(SAME):
                print(f"process {number}: {text}", flush=True)
        torch.set_num_threads(options.threads)
        print(f"the first forward differed from the second in {differed} of {options.processes} processes")
        print(describe_machine())
        write_results(options.output, [{"processes": options.processes, "first forward differed": differed}])
        sys.exit(differed > 0)

    RewardTrainer.train = train
    with tempfile.TemporaryDirectory() as folder:
        run_quickstart(0, folder, train_pairs=options.rows, test_pairs=PAIRS)


if __name__ == "__main__":
    main()
