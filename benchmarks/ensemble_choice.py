"""Best of n on the built-in world: the true reward of what each reward chooses, and the errors that spread predicts.

`ensembles.py` describes the design.
"""

from dataclasses import asdict

import numpy as np
from ensemble_world import group_folder, reference_length
from scipy import stats
from sklearn.metrics import roc_auc_score

from plaudit.evaluation.best_of_n import expected_best
from plaudit.evaluation.significance import holm
from plaudit.evaluation.uncertainty_figures import adjusted_auroc
from plaudit.uncertainty import MemberUncertainty, PosteriorUncertainty

SINGLE = "a single model"
LAPLACE_MEAN = "Laplace, mean"  # the single models that have a posterior
SMALL_HEAD = "a single model, small head"
CONSERVATIVE = ["mean-std", "mean-var", "min"]
PRIMARY = [f"{kind}, {how}" for kind in ("heads", "seeds") for how in ("mean", *CONSERVATIVE)] + ["Laplace, mean-std"]
WEIGHTS = [0.25, 0.5, 1.0, 2.0, 4.0]
SETS = ("own", "far", "both")


def read_group(sizes, folder, group):
    """Return the true rewards [P, 2 N], and for each kind a list of pairs of constants and columns [S, C]."""
    place, length = group_folder(folder, group), reference_length(sizes)
    heads = np.load(place / "heads" / "columns.npy")
    singles = [np.load(place / f"seed-{seed}" / "columns.npy") for seed in range(sizes.members)]
    rewards = np.stack([each[:, 0] for each in singles], 1)
    models = {}
    for kind, columns in (("heads", heads), ("seeds", np.column_stack([rewards.mean(1), rewards]))):
        models[kind] = [(MemberUncertainty.measure(columns[:length, 1:]), columns[length:])]
    models["Laplace"] = []
    for columns in singles[: sizes.posteriors]:
        reference = columns[:length, 0].astype(np.float64)
        constants = PosteriorUncertainty(float(reference.mean()), float(reference.std()), columns.shape[1] - 2)
        models["Laplace"].append((constants, columns[length:]))
    return np.load(place / "true.npy"), models


def of_set(name, values, count):
    """Return those of the 2 N candidates of each prompt that a set has."""
    return {"own": values[:, :count], "far": values[:, count:], "both": values}[name]


def chosen(rewards, true, numbers):
    """Return the mean true reward of the best of n, for each n."""
    return np.mean([expected_best(row, values, numbers) for row, values in zip(rewards, true, strict=True)], 0)


def choices(sizes, folder, group, numbers):
    """Return the true reward of the best of each n, by set and reward, in one group."""
    true, models = read_group(sizes, folder, group)
    small = np.load(group_folder(folder, group) / "small-head" / "columns.npy")[reference_length(sizes) :, 0]
    members = models["seeds"][0][1][:, 1:]
    rewards = {SINGLE: list(members.T), LAPLACE_MEAN: list(members.T[: sizes.posteriors])}
    rewards[SMALL_HEAD] = [small]
    rewards["random"] = [np.zeros(true.size)]
    rewards["the true reward"] = [true.ravel()]
    for kind, parts in models.items():
        for how in ("mean", *CONSERVATIVE):
            if f"{kind}, {how}" in PRIMARY:
                rewards[f"{kind}, {how}"] = [each.aggregate(columns, how) for each, columns in parts]
        for k in WEIGHTS:
            rewards[f"{kind}, mean-std, k={k:g}"] = [each.aggregate(columns, "mean-std", k) for each, columns in parts]
    found = {}
    for name in SETS:
        values = of_set(name, true, sizes.candidates)
        found[name] = {
            reward: np.mean(
                [chosen(of_set(name, one.reshape(true.shape), sizes.candidates), values, numbers) for one in each], 0
            )
            for reward, each in rewards.items()
        }
    return found


def errors(sizes, folder, group):
    """Return the figures of the spread of candidates' comparisons, by kind and set, in one group."""
    true, models = read_group(sizes, folder, group)
    order = np.random.default_rng(group).permutation(sizes.candidates)
    found = {}
    for name in ("own", "far"):
        first, second = np.split(
            of_set(name, np.arange(true.size).reshape(true.shape), sizes.candidates)[:, order], 2, 1
        )
        prompts = np.repeat(np.arange(len(first)), first.shape[1])
        label = np.sign(true.ravel()[first] - true.ravel()[second]).ravel()
        first, second, prompts = first.ravel()[label != 0], second.ravel()[label != 0], prompts[label != 0]
        label = label[label != 0]
        for kind, parts in models.items():
            figures = []
            for constants, columns in parts:
                members = constants.standardize(constants.members(columns))
                spread = (members[first] - members[second]).std(1, ddof=1)
                margin = (columns[first, 0] - columns[second, 0]) * label
                wrong = np.where(margin == 0, 0.5, margin < 0)
                kept = wrong != 0.5
                figures.append(
                    [
                        wrong.mean(),
                        roc_auc_score(wrong[kept], spread[kept]),
                        roc_auc_score(wrong[kept], -np.abs(margin[kept])),
                        adjusted_auroc(wrong, spread, np.abs(margin), prompts)[0],
                    ]
                )
            found[kind, name] = np.mean(figures, 0)
    return found


def baseline(reward):
    """Return the single models that a reward is compared with: of Laplace those that it was fitted to."""
    return LAPLACE_MEAN if reward.startswith("Laplace") else SINGLE


def interval(values):
    """Return the mean over groups with its t-interval of 95%."""
    values = np.asarray(values, dtype=np.float64)
    half = (
        stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    )
    return {"mean": values.mean(), "low": values.mean() - half, "high": values.mean() + half}


def family(values, pairs, at):
    """Return the paired differences (reward minus baseline, by group) with t-intervals and p-values after Holm."""
    differences = {name: values[name][:, at] - values[baseline][:, at] for name, baseline in pairs.items()}
    p_values = [float(stats.ttest_1samp(each, 0.0).pvalue) for each in differences.values()]
    return [
        {"reward": name, "minus": pairs[name], **interval(each), "p": p, "p_holm": adjusted}
        for (name, each), p, adjusted in zip(differences.items(), p_values, holm(p_values), strict=True)
    ]


def measure_choice(sizes, folder):
    """Compute all figures of the groups in a folder."""
    numbers = [n for n in (1, 4, 16, 64) if n <= sizes.candidates]
    groups = [choices(sizes, folder, group, numbers) for group in range(sizes.groups)]
    values = {
        name: {reward: np.stack([each[name][reward] for each in groups]) for reward in groups[0][name]} for name in SETS
    }
    spread = [errors(sizes, folder, group) for group in range(sizes.groups)]
    figures = ("wrong", "spread_auroc", "margin_auroc", "adjusted_auroc")
    to_single = {reward: baseline(reward) for reward in PRIMARY}
    to_mean = {name: name.split(",")[0] + ", mean" for name in PRIMARY if name.split(", ")[1] in CONSERVATIVE}
    del to_mean["Laplace, mean-std"]
    result = {
        "sizes": asdict(sizes),
        "n": numbers,
        "true_reward": {
            name: {reward: [interval(column) for column in rows.T] for reward, rows in values[name].items()}
            for name in SETS
        },
        "by_group": {name: {reward: rows.tolist() for reward, rows in values[name].items()} for name in SETS},
        "minus_models": {  # a single model, of Laplace those that it was fitted to
            name: {
                reward: [interval(column) for column in (rows - values[name][baseline(reward)]).T]
                for reward, rows in values[name].items()
            }
            for name in SETS
        },
        "primary": family(values["both"], to_single, -1),
        "pessimism": family(values["both"], to_mean, -1),
        "control": family(values["both"], {"heads, mean": SMALL_HEAD, "seeds, mean": SMALL_HEAD}, -1),
        "errors": [
            {"kind": kind, "set": name}
            | {figure: interval(column) for figure, column in zip(figures, np.transpose(rows), strict=True)}
            for (kind, name), rows in ((key, [each[key] for each in spread]) for key in spread[0])
        ],
    }
    print_choice(result)
    return result


def print_choice(result):
    """Print the primary comparisons and the errors."""
    for title in ("primary", "pessimism", "control"):
        print(f"{title}: true reward of the best of {result['n'][-1]} of both sets, difference by group")
        for row in result[title]:
            ends = f"({row['low']:+.3f} to {row['high']:+.3f})"
            print(
                f"  {row['reward']:<20} - {row['minus']:<15} {row['mean']:+.3f}  {ends}  p {row['p']:.4f}"
                f"  Holm {row['p_holm']:.4f}"
            )
    for row in result["errors"]:
        shown = "  ".join(
            f"{name} {row[name]['mean']:.3f} ({row[name]['low']:.3f} to {row[name]['high']:.3f})"
            for name in ("wrong", "spread_auroc", "margin_auroc", "adjusted_auroc")
        )
        print(f"  {row['kind']:<8} {row['set']:<4} {shown}")
