"""Draw the pictures and print the tables of `docs/uncertainty.md` from the results of `ensembles.py`.

Usage: python benchmarks/draw_ensembles.py ensembles.json docs
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

SINGLE = "a single model"
COLOURS = {
    SINGLE: "black", "heads, mean": "tab:cyan", "heads, mean-std": "tab:blue", "seeds, mean": "tab:orange",
    "seeds, mean-std": "tab:red", "Laplace, mean-std": "tab:green",
}  # fmt: skip
SETS = {"own": "the world's responses", "far": "far from the training data", "both": "both together"}
KINDS = {"heads": "tab:blue", "seeds": "tab:red", "Laplace": "tab:green"}


def points(axes, rows, labels, colours):
    """Draw means with their intervals, one below the other."""
    for place, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2)
        axes.plot(row["mean"], place, "o", color=colour)
    axes.set(yticks=range(len(rows)), yticklabels=labels)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)


def draw_choice(choice, path):
    """True reward against n, and the differences to a single model at the largest n."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    curves, *panels = figure.subplots(1, 4, width_ratios=[1.5, 1, 1, 1])
    for reward, colour in COLOURS.items():
        found = [each["mean"] for each in choice["true_reward"]["both"][reward]]
        curves.plot(choice["n"], found, color=colour, label=reward, marker=".")
    curves.set(xscale="log", xticks=choice["n"], xticklabels=choice["n"], xlabel="n", ylabel="true reward")
    curves.set_title("best of n, both together")
    curves.legend(fontsize=8)
    curves.grid(alpha=0.3)
    names = [row["reward"] for row in choice["primary"]]
    colours = [KINDS[name.split(",")[0]] for name in names]
    for axes, (name, title) in zip(panels, SETS.items(), strict=True):
        rows = [choice["minus_models"][name][reward][-1] for reward in names]
        points(axes, rows, names, colours)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=8, labelleft=axes is panels[0])
    panels[1].set_xlabel(f"true reward at n = {choice['n'][-1]}, minus a single model (95%)")
    figure.savefig(path, dpi=100)


def draw_policy(policy, path):
    """True reward and learnt reward over the steps, each guard in its colour, each group a thin line."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("true", "learnt"), strict=True):
        for guard, runs in policy["curves"].items():
            rows = np.array([run[name] for run in runs])
            if name == "learnt":  # of one zero and one unit
                rows = rows - rows[:, :1]
                rows = rows / np.abs(rows).max(1, keepdims=True)
            axes.plot(runs[0]["step"], rows.T, color=COLOURS[guard], linewidth=0.6, alpha=0.4)
            axes.plot(runs[0]["step"], rows.mean(0), color=COLOURS[guard], linewidth=2, label=guard)
        axes.set(xlabel="step of GRPO", title=f"{name} reward, mean over held-out prompts")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("true reward")
    figure.axes[1].set_ylabel("gain, as a share of its maximum")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=100)


def draw_files(files, path):
    """The AUROC of the spread at equal differences, and accuracy against coverage on the shifted files."""
    results = files["results"]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    adjusted, *panels = figure.subplots(1, 4, width_ratios=[1.4, 1, 1, 1])
    rows = [
        {"mean": row["uncertainty"]["adjusted_auroc"]}
        | {end: row["uncertainty"][f"adjusted_auroc_{end}"] for end in ("low", "high")}
        for row in results
    ]
    labels = [f"{row['trained_on']} on {row['judged_on']}, {row['kind']}" for row in results]
    points(adjusted, rows, labels, [KINDS[row["kind"]] for row in results])
    adjusted.axvline(0.5, color="black", linewidth=0.8)
    adjusted.tick_params(axis="y", labelsize=7)
    adjusted.set(title="spread at equal differences", xlabel="AUROC for errors (95%)")
    shifts = dict.fromkeys((row["trained_on"], row["judged_on"]) for row in results if row["set"] == "shifted")
    for axes, shift in zip(panels, shifts, strict=True):
        for row in results:
            if (row["trained_on"], row["judged_on"]) == shift:
                covered = row["uncertainty"]["coverage"]
                shares = [each["coverage"] for each in covered]
                axes.plot(shares, [each["spread"] for each in covered], color=KINDS[row["kind"]], label=row["kind"])
                axes.plot(shares, [each["margin"] for each in covered], color=KINDS[row["kind"]], linestyle=":")
        axes.set_title(f"{shift[0]} on {shift[1]}", fontsize=10)
        axes.set_xlabel("coverage")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy: least spread, dotted: greatest difference", fontsize=8)
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=100)


def shown(row, digits=3, sign=True):
    """Write a mean and its interval."""
    form = f"{'+' if sign else ''}.{digits}f"
    return f"{row['mean']:{form}} ({row['low']:{form}} to {row['high']:{form}})"


def print_tables(results):
    """Print the tables of the page."""
    if choice := results.get("choice"):
        print(f"\n| reward | {' | '.join(SETS.values())} | p after Holm |\n| --- | --- | --- | --- | --- |")
        for row in choice["primary"]:
            cells = [shown(choice["minus_models"][name][row["reward"]][-1]) for name in SETS]
            print(f"| {row['reward']} | {' | '.join(cells)} | {row['p_holm']:.4f} |")
        print("\n| true reward at each n, both | " + " | ".join(map(str, choice["n"])) + " |")
        for reward, found in choice["true_reward"]["both"].items():
            print(f"| {reward} | {' | '.join(format(each['mean'], '.3f') for each in found)} |")
        for title in ("pessimism", "control"):
            print(f"\n| {title} | minus | difference | p after Holm |")
            for row in choice[title]:
                print(f"| {row['reward']} | {row['minus']} | {shown(row)} | {row['p_holm']:.4f} |")
        print("\n| errors of | among | wrong | AUROC of the spread | of a small difference | at equal differences |")
        for row in choice["errors"]:
            cells = [
                shown(row[each], sign=False) for each in ("wrong", "spread_auroc", "margin_auroc", "adjusted_auroc")
            ]
            print(f"| {row['kind']} | {row['set']} | {' | '.join(cells)} |")
    if policy := results.get("policy"):
        print("\n| guard | true reward at best | in the end | minus a single model |")
        for guard in policy["end"]:
            cells = [f"{policy[part][guard]['mean']:.2f}" for part in ("best", "end")]
            print(f"| {guard} | {' | '.join(cells)} | {shown(policy['end_minus_single'][guard], 2)} |")
    if files := results.get("files"):
        print("\n| file | kind | accuracy | spread | difference | at equal differences | calibration | correlation |")
        for row in files["results"]:
            each = row["uncertainty"]
            adjusted = (
                f"{each['adjusted_auroc']:.3f} ({each['adjusted_auroc_low']:.3f} to {each['adjusted_auroc_high']:.3f})"
            )
            print(
                f"| {row['trained_on']} on {row['judged_on']} | {row['kind']} | {row['overall']['accuracy']:.3f} | "
                f"{each['spread_auroc']:.3f} | {each['margin_auroc']:.3f} | {adjusted} | "
                f"{each['calibration_error']:.3f}, {each['calibration_error_with_spread']:.3f} | "
                f"{each['error_correlation']:.2f} |"
            )
    print(json.dumps(results.get("speed", {})))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    for part, draw in {"choice": draw_choice, "policy": draw_policy, "files": draw_files}.items():
        if part in results:
            draw(results[part], options.folder / f"uncertainty_{part}.png")
    print_tables(results)


if __name__ == "__main__":
    main()
