"""Draw the picture of `docs/speed.md`, and write its tables, from the results of `make proof`.

The tables stand between comments such as `<!-- training -->` and `<!-- /training -->`; what was there is replaced.

Usage: python benchmarks/draw_proof.py proof/results.json docs
"""

import argparse
import json
import re
from pathlib import Path

from matplotlib.figure import Figure
from proof_parts import GOALS
from results import as_tables, shown

FILES = {
    "hh_harmless_transcripts": "harmlessness transcripts", "tara": "tool-use questions",
    "truthfulqa": "short questions and answers", "summedits": "long documents, two summaries each",
    "summedits, by prompt": "the same, with `group_by_prompt`", "oasst_ranked": "ranked groups of responses",
}  # fmt: skip
WORKLOADS = {
    "best of 16, hh_harmless": "harmlessness prompts, 16 replies each", "pairs, hh_harmless": "harmlessness pairs",
    "pairs, summedits": "long documents, two summaries each",
}  # fmt: skip
TRAINING = ("training_pairs", "training_documents", "training_by_prompt", "training_groups", "training_float32")
PICTURE = (
    "![Left: times as fast as TRL in training, scoring and tokenising. Right: time per token in training by the size "
    "of the forest](speed.png)"
)
COLOURS = {
    "training": "tab:blue",
    "training in float32": "tab:purple",
    "scoring": "tab:orange",
    "tokenising": "tab:green",
}


def rows_of(results, *parts):
    """Return the rows of parts, as far as the parts ran."""
    return [(part, row) for part in parts for row in results["parts"].get(part, {"rows": []})["rows"]]


def bound_of(part, row, column):
    """Return the bound of the goal for a row and a column, or `None`."""
    bounds = (each.bound for each in GOALS if each.part == part and each.column == column
              and each.where.items() <= row.items())  # fmt: skip
    return next(bounds, None)


def ratios(results):
    """Return kind, label, ratio to the peer, its interval over steps or `None`, and the goal or `None`."""
    found = []
    for part, row in rows_of(results, *TRAINING):
        kind = "training in float32" if part == "training_float32" else "training"
        bound = bound_of(part, row, "times to positions")
        # The goal is one of the median of another ratio: it is drawn as far from the bar as that median is from it.
        bound = bound and bound * row["times"] / row["times to positions"]
        found.append(
            (kind, FILES[row["file"]].replace("`", ""), row["times"], (row["times, 10%"], row["times, 90%"]), bound)
        )
    for part, row in rows_of(results, "scoring"):
        if row["scorer"] == "trl":
            bound = bound_of(part, row, "seconds, of Plaudit's")
            found.append(("scoring", WORKLOADS[row["workload"]], row["seconds, of Plaudit's"], None, bound))
    for part, row in rows_of(results, "tokenising"):
        found.append(("tokenising", "rows to token ids", row["times"], None, bound_of(part, row, "times")))
    return found


def draw(results, path):
    """Draw the ratios to TRL by workload, and the time per token by the size of the forest."""
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    bars, growth = figure.subplots(1, 2, width_ratios=[1.5, 1])
    found = ratios(results)
    for place, (kind, _, ratio, interval, bound) in enumerate(found):
        bars.barh(place, ratio, color=COLOURS[kind], height=0.7)
        bars.text(0.15, place, f"{ratio:.1f}", va="center", fontsize=9, color="white", fontweight="bold")
        if interval:
            bars.plot(interval, [place, place], color="black", linewidth=1.2)
        if bound:
            bars.plot([bound, bound], [place - 0.42, place + 0.42], color="tab:red", linewidth=2.5)
    for kind in dict.fromkeys(kind for kind, *_ in found):
        bars.barh(0, 0, color=COLOURS[kind], label=kind)
    bars.plot([], [], color="tab:red", linewidth=2.5, label="goal")
    bars.plot([], [], color="black", linewidth=1.2, label="10% to 90% of steps")
    bars.set(yticks=range(len(found)), yticklabels=[label for _, label, *_ in found])
    bars.tick_params(axis="y", labelsize=9)
    bars.invert_yaxis()
    bars.axvline(1, color="black", linewidth=0.8, linestyle=":")
    bars.set_title("times as fast as TRL", fontsize=11)
    bars.set_xlim(left=0)
    bars.grid(axis="x", alpha=0.3)
    figure.legend(fontsize=9, loc="outside lower center", ncols=3)
    rows = [row for _, row in rows_of(results, "training_growth") if "budget" in row]
    growth.plot([row["tokens a batch"] for row in rows], [row["us a token"] for row in rows], marker="o")
    flat = bound_of("training_growth", {"time per token": "with checkpointing"}, "flat within")
    least = min((row["us a token"] for row in rows), default=0)
    growth.axhspan(least, (1 + flat) * least, color="tab:red", alpha=0.12)
    budgets = [row["budget"] for row in rows]
    growth.set_xscale("log", base=2)
    growth.set(xticks=budgets, xticklabels=[f"{budget >> 10}k" for budget in budgets], xlabel="tokens of a forest")
    growth.minorticks_off()
    growth.set_ylim(bottom=0)
    growth.set_title("training: microseconds a token", fontsize=11)
    growth.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def training_table(results, *parts):
    rows = [
        {
            "rows": FILES[row["file"]], "precision": row["precision"], "pairs a second, TRL": row["TRL's"],
            "Plaudit": row["pairs/s"], "times": row["times"],
            "10% to 90% of steps": f"{row['times, 10%']:.1f} to {row['times, 90%']:.1f}",
            "TRL's positions for each token": row["positions to tokens"], "of the matrix rate": f"{row['reached']:.0%}",
            "memory, TRL, GB": row["TRL's GB"], "memory, Plaudit, GB": row["peak GB"],
        }
        for _, row in rows_of(results, *parts)
    ]  # fmt: skip
    apart = max((row["losses apart"] for _, row in rows_of(results, *parts)), default=None)
    steps = sorted({row["steps"] for _, row in rows_of(results, *parts)})
    if not rows:
        return ""
    said = f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else f"{steps[0]}"
    return f"{as_tables(rows)}\n\n{said} steps a line. The losses of a step differ by at most {shown(apart)}."


def scoring_table(results):
    by_workload = {}
    for _, row in rows_of(results, "scoring"):
        by_workload.setdefault(row["workload"], {})[row["scorer"]] = row
    rows = []
    for workload, scorers in by_workload.items():
        ours, trl, pipeline = (scorers[name] for name in ("plaudit", "trl", "pipeline"))
        rows.append({
            "conversations": WORKLOADS[workload], "by path, a second": trl["conversations/s"],
            "pipeline": pipeline["conversations/s"], "Plaudit": ours["conversations/s"],
            "times by path": trl["seconds, of Plaudit's"], "times the pipeline": pipeline["seconds, of Plaudit's"],
            "memory, by path, GB": trl["GB above loaded"], "memory, Plaudit, GB": ours["GB above loaded"],
        })  # fmt: skip
    apart = max((row["apart by"] for _, row in rows_of(results, "scoring")), default=None)
    return f"{as_tables(rows)}\n\nThe rewards differ by at most {shown(apart)}." if rows else ""


def host_table(results):
    """Milliseconds, operators and synchronisations of a whole step, and the ratios on one sequence."""
    rows = [row for _, row in rows_of(results, "host_time")]
    steps = [{"step": row["workload"], "by": row["layout"], "milliseconds": row["milliseconds"],
              "operators": row["operators"], "waits for a device": row["synchronisations"]}
             for row in rows if row.get("part") == "the step"]  # fmt: skip
    alone = [{"step": row["workload"], "forest, ms": row["forest_milliseconds"],
              "transformers, ms": row["transformers_milliseconds"], "ratio": row["ratio"]}
             for row in rows if "ratio" in row]  # fmt: skip
    return as_tables(steps + alone)


def machine_text(results):
    """Return a sentence about the machine and the run."""
    machine, versions = results["machine"], results["machine"]["versions"]
    parts = results["parts"].values()
    load = max((part["load"] for part in parts), default=0)
    instructions = ", ".join(machine["instructions"]) or "none of the listed instructions"
    return (
        f"Measured on {machine['date'][:10]} at commit {machine['commit']}: {machine['processor']} ({instructions}), "
        f"{machine['cores']} cores, {machine['memory_gb']:.0f} GB; torch {versions['torch']}, transformers "
        f"{versions['transformers']}, TRL {versions['trl']}. {len(parts)} parts took {results['seconds'] / 60:.0f} "
        f"minutes. Before each part at most {load:.1f} cores were busy with something else."
    )


def tables(results):
    """Return the text of each block of the page."""
    goals = [{name: value for name, value in goal.items() if name != "part"} for goal in results["goals"]]
    plain = {name: as_tables([row for _, row in rows_of(results, part)]) for name, part in (
        ("growth", "training_growth"), ("tokenising", "tokenising"), ("start_up", "start_up"), ("parity", "parity"),
        ("quickstart", "quickstart"),
    )}  # fmt: skip
    return plain | {
        "machine": machine_text(results), "picture": PICTURE, "goals": as_tables(goals),
        "scoring": scoring_table(results),
        "training": training_table(results, *(part for part in TRAINING if part != "training_float32")),
        "float32": training_table(results, "training_float32"), "host": host_table(results),
        "checkpointing": training_table(results, "training_checkpointed"),
    }  # fmt: skip


def fill(page, blocks):
    """Return the page with the text of each block in place of what was there."""
    for name, text in blocks.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if start not in page or end not in page:
            raise ValueError(f"the page lacks the comments {start} and {end}")
        text = text or "This part was not measured."
        page = re.sub(f"{start}.*?{end}", lambda _: f"{start}\n\n{text}\n\n{end}", page, flags=re.DOTALL)  # noqa: B023
    return page


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("folder", type=Path, help="folder of the page, speed.md")
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    draw(results, options.folder / "speed.png")
    page = options.folder / "speed.md"
    page.write_text(fill(page.read_text(encoding="utf-8"), tables(results)), encoding="utf-8")


if __name__ == "__main__":
    main()
