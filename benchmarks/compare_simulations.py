"""Does `plaudit compare` keep its promises? Simulates two models with known accuracies, and compares them each time.

A comparison has a latent margin for each model, normal with the mean that gives the model its accuracy. The margins of
the two models are correlated, and so are those of the comparisons of one prompt. The promises: two files of one model
that differ by noise are not separable in at least 94%; a difference of 5 points at 3,000 pairs is found in at least
95%; the intervals hold the true difference in 93 to 97% with 1 to 20 comparisons a prompt. Fewer than 500 simulations
are too few to judge that by.

Usage: python benchmarks/compare_simulations.py [--simulations 500]
"""

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from results import add_output, write_results

from plaudit.evaluation.significance import paired_difference


@dataclass(frozen=True)
class World:
    """Two models and the comparisons that both judge.

    `shared` is the part of the variance of a margin that both models have in common (how hard the comparison is), and
    `of_prompt` the part that the comparisons of one prompt have in common, for each model and for what both share.
    """

    prompts: int
    most: int = 1  # comparisons of a prompt: from 1 to this number
    accuracies: tuple[float, float] = (0.75, 0.70)
    shared: float = 0.5
    of_prompt: float = 0.0

    def draw(self, generator):
        """Return whether each of both models is right, the prompts, all of shape [C]."""
        prompts = np.repeat(np.arange(self.prompts), generator.integers(1, self.most + 1, size=self.prompts))
        common = self._noise(generator, prompts)
        right = []
        for accuracy in self.accuracies:
            margin = np.sqrt(self.shared) * common + np.sqrt(1 - self.shared) * self._noise(generator, prompts)
            right.append((margin + NormalDist().inv_cdf(accuracy) > 0).astype(float))
        return *right, prompts

    def _noise(self, generator, prompts):
        of_prompt = generator.normal(size=self.prompts)[prompts]
        return np.sqrt(self.of_prompt) * of_prompt + np.sqrt(1 - self.of_prompt) * generator.normal(size=len(prompts))


NOISE = {
    "two files of one model, 3,000 pairs, 2% of verdicts differ": World(3000, accuracies=(0.75, 0.75), shared=0.998),
    "two files of one model, 3,000 pairs, 10% differ": World(3000, accuracies=(0.75, 0.75), shared=0.95),
    "two seeds of equal accuracy, 3,000 pairs": World(3000, accuracies=(0.75, 0.75)),
    "one model, 300 prompts of 1 to 20, 10% differ": World(300, 20, (0.75, 0.75), shared=0.95, of_prompt=0.5),
    "one model, 300 prompts of 1 to 20, 2% differ": World(300, 20, (0.75, 0.75), shared=0.998, of_prompt=0.5),
}
FOUND = {
    "5 points, 3,000 pairs, errors in common": World(3000, shared=0.7),
    "5 points, 3,000 pairs, independent errors": World(3000, shared=0.0),
    "5 points, 1,500 prompts of 1 to 3": World(1500, 3, of_prompt=0.3),
    "3 points, 3,000 pairs, errors in common": World(3000, accuracies=(0.75, 0.72), shared=0.7),
}
COVERED = {
    f"{count} prompts of 1 to {most}": World(count, most, of_prompt=0.4)
    for count, most in ((300, 1), (300, 5), (300, 20), (1000, 20), (100, 20), (50, 20), (30, 5))
}
JUDGED = 500  # simulations from which on a share outside of its bounds is no chance
PROMISED = [name for name in COVERED if name.startswith(("300", "1000"))]


def simulate(world, simulations, seed=0):
    """Return the results for `simulations` draws of a world, and the milliseconds of one."""
    generator, begin = np.random.default_rng(seed), time.perf_counter()
    results = [paired_difference(*world.draw(generator), seed=number) for number in range(simulations)]
    return results, 1000 * (time.perf_counter() - begin) / simulations


def share_covered(world, results):
    truth = world.accuracies[0] - world.accuracies[1]
    return float(np.mean([each.low <= truth <= each.high for each in results]))


def judge(pool, simulations):
    """Print the shares of all worlds; return whether the promises are kept, and rows of figures."""
    kept, rows, every = True, [], NOISE | FOUND | COVERED
    simulated = pool.map(simulate, every.values(), [simulations] * len(every))
    for title, worlds in (("not separable", NOISE), ("found", FOUND), ("interval covers", COVERED)):
        print(f"\n{title:>68}   mean width   detectable   ms each")
        for name, world in worlds.items():
            results, milliseconds = next(simulated)
            separable = float(np.mean([each.separable for each in results]))
            share = {"not separable": 1 - separable, "found": separable}.get(title, share_covered(world, results))
            width = np.mean([each.high - each.low for each in results])
            detectable = np.mean([each.smallest_detectable for each in results])
            print(f"{name:>60}{share:8.1%}{width:13.1%}{detectable:13.1%}{milliseconds:10.0f}", flush=True)
            rows.append({"worlds": name, "wanted": title, "share": share, "mean width": width,
                         "smallest detectable": detectable, "ms": milliseconds})  # fmt: skip
            if worlds is NOISE:
                kept &= share >= 0.94
            elif worlds is FOUND and name.startswith("5 points, 3,000"):
                kept &= share >= 0.95
            elif name in PROMISED:
                kept &= 0.93 <= share <= 0.97
    return kept, rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--simulations", type=int, default=500)
    add_output(parser)
    options = parser.parse_args()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        kept, rows = judge(pool, options.simulations)
    write_results(options.output, rows)
    if not kept and options.simulations >= JUDGED:
        sys.exit("a promise is broken")


if __name__ == "__main__":
    main()
