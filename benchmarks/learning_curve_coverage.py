"""How often the prediction at twice the data holds the truth, and how often a flat curve is called identifiable.

Curves of known a, b and c are simulated: each comparison has a difficulty that all models share, a part of its own for
each model, and each training moves the mean loss by chance (`seed noise`, as a standard deviation). The truth is the
expected loss at twice the data, and the gain from the expected loss at the largest size.

    python benchmarks/learning_curve_coverage.py --simulations 400
"""

import argparse
import time

import numpy as np
from results import add_output, write_results

from plaudit.evaluation.learning_curve import fit_learning_curve

SIZES = np.array([500, 1000, 2000, 4000])
CURVES = {
    "falling, a=.40 b=3 c=.35": (0.40, 3.0, 0.35),
    "slowly falling, a=.30 b=1.5 c=.15": (0.30, 1.5, 0.15),
    "bending, a=.45 b=10 c=.60": (0.45, 10.0, 0.60),
    "flat, a=.60 b=0": (0.60, 0.0, 0.5),
}


def expected_loss(curve, sizes):
    a, b, c = curve
    return a + b * np.asarray(sizes, dtype=float) ** -c


def simulate(curve, comparisons, seed_noise, per_prompt, draw):
    """Differences of rewards [S, C] and prompts [C]; comparisons of one prompt share half of their difficulty."""
    prompts = np.arange(comparisons) // per_prompt
    difficulty = (draw.gamma(1.0, 1.0, prompts[-1] + 1)[prompts] + draw.gamma(1.0, 1.0, comparisons)) / 2
    means = expected_loss(curve, SIZES) + seed_noise * draw.normal(size=len(SIZES))
    own = 0.15 * draw.normal(size=(len(SIZES), comparisons)) * np.sqrt(difficulty)
    losses = np.maximum(means[:, None] * difficulty + own, 1e-3)
    return -np.log(np.expm1(losses)), prompts


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--simulations", type=int, default=400)
    parser.add_argument("--resamples", type=int, default=500)
    add_output(parser)
    options, rows = parser.parse_args(), []
    print(f"{options.simulations} simulations of each row; shares of those that are identifiable hold the truth")
    print(f"{'curve':<34} {'C':>5} {'/prompt':>7} {'seed noise':>10} {'identifiable':>12} {'loss':>6} {'gain':>6}")
    started = time.perf_counter()
    for name, curve in CURVES.items():
        for comparisons, per_prompt in ((500, 1), (3000, 1), (3000, 4)):
            for seed_noise in (0.0, 0.004):
                draw, held = np.random.default_rng(0), []
                for number in range(options.simulations):
                    differences, prompts = simulate(curve, comparisons, seed_noise, per_prompt, draw)
                    fitted = fit_learning_curve(
                        SIZES, differences, prompts, resamples=options.resamples, seed=number
                    ).predicted
                    if fitted is not None:
                        now, twice = expected_loss(curve, [SIZES[-1], 2 * SIZES[-1]])
                        loss = fitted["low"] <= twice <= fitted["high"]
                        held.append((loss, fitted["gain_low"] <= now - twice <= fitted["gain_high"]))
                of_loss, of_gain = np.mean(held, 0) if held else (np.nan, np.nan)
                share = len(held) / options.simulations
                print(
                    f"{name:<34} {comparisons:>5} {per_prompt:>7} {seed_noise:>10} {share:>12.1%} {of_loss:6.1%} "
                    f"{of_gain:6.1%}", flush=True,
                )  # fmt: skip
                rows.append({"curve": name, "comparisons": comparisons, "of a prompt": per_prompt,
                             "seed noise": seed_noise, "identifiable": share, "loss held": of_loss,
                             "gain held": of_gain})  # fmt: skip
    print(f"{time.perf_counter() - started:.0f} seconds")
    write_results(options.output, rows)


if __name__ == "__main__":
    main()
