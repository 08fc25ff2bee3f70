"""Does an uncertainty of rewards help? Heads, seeds and Laplace where the true reward is known, and on real files.

    python benchmarks/ensembles.py --data FOLDER --output ensembles.json              # `make proof`
    python benchmarks/ensembles.py --short --parts choice --output ensembles.json     # tiny sizes, as in the tests

The design below was written before any comparison was computed. Only speed and the accuracy of one single model were
looked at, to choose the sizes.

**Models.** A base decoder of a third of a million parameters learns from about 24,000 clean pairs of the built-in world
which answers are right, as a base model knows facts. One base serves all groups. A group is one draw of 2,000
preference pairs, with 25% of the labels flipped. On each group are trained, for one epoch, each with a new head:

- seeds: 5 single models, which differ in the new head and in the order of the rows;
- heads: one model with `num_heads=5`;
- Laplace: `fit_laplace` on the training rows of the first 2 of the 5 single models, whose figures are averaged.

There are 20 groups. "A single model" is the mean over the 5 single models of a group of what each of them reaches,
which has the same expectation as one of them and less noise.

**Choice (best of n).** 64 held-out prompts a group, and for each prompt three sets of responses: `own`, 64 draws of the
world; `far`, 64 responses as a policy may find them (draws of the world with one to three of: several answers at once,
up to eight further sentences, courtesies without an answer, up to 60 random words, exclamation marks everywhere);
`both`, the 128 together. The response with the greatest reward of n in {1, 4, 16, 64} is chosen, in expectation over
all subsets (`expected_best`), and its true reward is what counts. Rewards: a single model; of heads and of seeds the
mean, mean-std, mean-var and min; of Laplace mean-std. k = 1.

Primary: n = 64 on `both`, each of 9 rewards minus a single model (Laplace: minus the same 2 models), paired by group,
t-interval over the 20 groups, p-values adjusted by Holm over the 9. Second: does pessimism add to averaging? The same
for the 6 conservative rewards of heads and seeds minus the mean of the same members, Holm over the 6. All other n and
sets are described with unadjusted intervals, and so is k in {0.25, 0.5, 1, 2, 4} for mean-std, reported whole.

Control, added after the first results: a single model whose new head is drawn 5 ** -0.5 times as large, as large as the
mean of 5 new heads is. The gain of averaging that it has too is a gain of the smaller head.

**Errors.** In each group, the candidates of a prompt are paired at random within `own` and within `far`; the better one
by the true reward should win. AUROC of the spread for wrong comparisons, that of a small difference, and the AUROC of
the spread at equal differences (`adjusted_auroc`), which decides whether the spread earns its place. Means and
t-intervals over the 20 groups.

**Policy.** Groups 0 to 2. A policy that imitates the world's responses is trained by GRPO without a KL penalty against
a single model (the first seed), the mean and mean-std of heads, the mean and mean-std of seeds, and mean-std of Laplace
of the first seed. Reported: reward and true reward over 60 steps on 128 held-out prompts, the true reward in the end
(mean of the last 3 evaluations), its maximum, and differences to the single model by group.

**Files.** Trained on harmlessness, judged on hhh_alignment; trained on tool use (tara), judged on truthfulqa; trained
on pandalm, judged on llmbar; each also judged on a held-out tenth of the training file. Decoders from scratch, one
group a file, with all figures of `plaudit eval` for heads, seeds and Laplace. Intervals are by prompt.

**Rule.** The documentation offers as a remedy only what has an interval above zero in a primary comparison (after
Holm) or in the policy's end, or whose spread earns its place on a shifted file. What does not is reported beside it.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ensemble_choice import measure_choice
from ensemble_files import measure_files
from ensemble_policy import measure_policy
from ensemble_speed import measure_speed
from ensemble_world import FULL, SHORT, prepare_groups
from results import describe_machine

PARTS = ("choice", "policy", "files", "speed")


def rows_of(results):
    """Return the comparisons with a single model at the largest n and the errors, as every benchmark writes figures."""
    choice = results.get("choice", {"primary": [], "errors": []})
    of_errors = (
        {name: row[name] if isinstance(row[name], str) else row[name]["mean"] for name in row}
        for row in choice["errors"]
    )
    return [*choice["primary"], *of_errors]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("ensembles.json"), help="a part that is there stays")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--data", type=Path, help="the folder of public preference files, for files and speed")
    parser.add_argument("--folder", type=Path, help="where models and rewards are kept, and found again")
    parser.add_argument("--groups", type=int, help="draws of the data for the choice: 20, as the design has them")
    parser.add_argument("--short", action="store_true", help="tiny sizes, which show that the benchmark runs")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if options.data is None and {"files", "speed"} & set(options.parts):
        parser.error("the parts files and speed need --data FOLDER; leave them out with --parts choice policy")
    sizes = SHORT if options.short else FULL
    if options.groups:
        sizes = replace(sizes, groups=options.groups, policy_groups=min(options.groups, sizes.policy_groups))
    results = json.loads(options.output.read_text()) if options.output.exists() else {}
    with TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if {"choice", "policy"} & set(options.parts):
            prepare_groups(sizes, folder, options.workers)
        measures = {
            "choice": lambda: measure_choice(sizes, folder),
            "policy": lambda: measure_policy(sizes, folder, options.workers),
            "files": lambda: measure_files(sizes, folder, options.data, options.workers),
            "speed": lambda: measure_speed(sizes, options.data),
        }
        for part in options.parts:
            started = time.perf_counter()
            results[part] = measures[part]() | {"seconds": time.perf_counter() - started}
            results |= {"rows": rows_of(results), "machine": describe_machine()}
            options.output.write_text(json.dumps(results, indent=1))
            print(f"{part}: {results[part]['seconds']:.0f} s; see {options.output}", flush=True)


if __name__ == "__main__":
    main()
