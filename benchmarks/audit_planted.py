"""What `plaudit.audit` finds of planted problems, false alarms on clean data, and the label noise that it estimates.

1. Problems planted in made data: the share found of each kind, near duplicates by their true Jaccard similarity.
2. Twenty clean sets of random words, and five of the built-in world: every finding is a false alarm.
3. Labels flipped in real data: the estimate, and the precision among the most suspicious k, k flips being planted.

Usage: python benchmarks/audit_planted.py [--data FOLDER] [--files truthfulqa,llmbar,tara,summedits]
"""

import argparse
import copy
import random
from pathlib import Path

from results import add_output, write_results
from workload import read_rows

from plaudit.auditing.audit import audit
from plaudit.quickstart.synthetic import PreferenceWorld

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "ar", "en") for c in "bdgklmnrst"]


def text(generator, least=5, most=80):
    return " ".join(generator.choice(WORDS) for _ in range(generator.randint(least, most)))


def clean_rows(generator, count):
    return [{"prompt": text(generator), "chosen": text(generator), "rejected": text(generator)} for _ in range(count)]


def grams(row):
    words = " ".join([row["prompt"], row["chosen"], row["rejected"]]).split()
    return {tuple(words[at : at + 3]) for at in range(len(words) - 2)}


def similarity(one, two):
    return len(grams(one) & grams(two)) / len(grams(one) | grams(two))


def changed(row, share, generator):
    return {
        name: " ".join(generator.choice(WORDS) if generator.random() < share else word for word in value.split())
        for name, value in row.items()
    }


def found(result, kind):
    return next(({tuple(group) for group in each.rows} for each in result.findings if each.kind == kind), set())


def share(wanted, groups):
    return f"{sum(any(set(pair) <= set(group) for group in groups) for pair in wanted)} of {len(wanted)}"


def planted(seed=0, each=100):
    """Plant every kind in 2,000 clean rows, print what is found, and return it."""
    generator = random.Random(seed)
    rows, tests = clean_rows(generator, 2000), clean_rows(generator, 300)
    wanted = {
        kind: [] for kind in ("duplicate_exact", "contradiction", "cycle", "identical", "empty", "duplicate_near")
    }
    for _ in range(each):
        first = generator.randrange(2000)
        wanted["duplicate_exact"].append((first, len(rows)))
        rows.append(copy.deepcopy(rows[first]))
        row = clean_rows(generator, 1)[0]
        wanted["contradiction"].append((len(rows), len(rows) + 1))
        rows += [row, row | {"chosen": row["rejected"], "rejected": row["chosen"]}]
        answers = [text(generator) for _ in range(generator.randint(3, 6))]
        wanted["cycle"].append(tuple(range(len(rows), len(rows) + len(answers))))
        rows += [{"prompt": row["prompt"] + " again", "chosen": answers[at - 1], "rejected": answers[at]}
                 for at in range(len(answers))]  # fmt: skip
        wanted["identical"].append((len(rows),))
        rows.append(row | {"prompt": text(generator), "rejected": row["chosen"]})
        wanted["empty"].append((len(rows),))
        rows.append(
            row | {"prompt": text(generator), generator.choice(["chosen", "rejected"]): generator.choice(["", " \n"])}
        )
    similar = []
    for _ in range(5 * each):
        first = generator.randrange(2000)
        similar.append(
            (
                similarity(rows[first], near := changed(rows[first], generator.uniform(0, 0.1), generator)),
                first,
                len(rows),
            )
        )
        rows.append(near)
    wanted["duplicate_near"] = [(one, two) for value, one, two in similar if 0.75 <= value < 1]
    exact, normalised, nearly = [], [], []
    for at, (kept, name) in enumerate(
        zip(generator.sample(range(2000), 300), [exact, normalised, nearly] * 100, strict=True)
    ):
        prompt = rows[kept]["prompt"]
        if name is normalised:
            prompt = "  " + prompt.upper().replace(" ", ", ") + " ?!\n"
        if name is nearly:
            prompt = " ".join([*prompt.split(), text(generator, 1, 1)])
        name.append((kept, at))
        tests[at]["prompt"] = prompt
    result = audit(rows, tests)
    shares = {kind: share(pairs, found(result, kind)) for kind, pairs in wanted.items()}
    shares["leaked_exact, the same prompt"] = share(exact, found(result, "leaked_exact"))
    shares["leaked_exact, normalised"] = share(normalised, found(result, "leaked_exact"))
    shares["leaked_near, one more word"] = share(nearly, found(result, "leaked_near"))
    for low in (0.6, 0.65, 0.7, 0.75, 0.8, 0.9):
        pairs = [(one, two) for value, one, two in similar if low <= value < low + (0.05 if low < 0.8 else 0.1)]
        shares[f"duplicate_near, similarity {low:.2f}"] = share(pairs, found(result, "duplicate_near"))
    print(f"planted in {len(rows):,} rows, found:", *(f"  {kind}: {of}" for kind, of in shares.items()), sep="\n")
    return [{"planted": kind, "found": of} for kind, of in shares.items()]


def false_alarms():
    """Audit clean sets, print what is found, and return it."""
    alarms = []
    for seed in range(20):
        generator = random.Random(1000 + seed)
        result = audit(clean_rows(generator, generator.randint(200, 3000)), clean_rows(generator, 200))
        alarms += [f"set {seed}: {each.kind} ({each.count})" for each in result.findings]
    print(f"false alarms on 20 clean sets: {len(alarms)} {alarms or ''}")
    for seed in range(5):
        rows = [{"prompt": each.prompt, "chosen": each.chosen, "rejected": each.rejected}
                for each in PreferenceWorld(seed).pairs(2000)]  # fmt: skip
        kinds = {each.kind: each.count for each in audit(rows).findings}
        print(f"built-in world, seed {seed}: {kinds}")
        alarms += kinds
    return [{"clean sets": 25, "false alarms": len(alarms)}]


def noise(path):
    """Flip labels of a file, print the estimate and the precision, and return them."""
    rows, estimates = read_rows(path), []
    for flips in (0, 0.05, 0.1, 0.2):
        for seed in range(3 if flips else 1):
            flipped = set(random.Random(seed).sample(range(len(rows)), int(flips * len(rows))))
            noisy = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} if number in flipped else row
                     for number, row in enumerate(rows)]  # fmt: skip
            result = audit(noisy).label_noise
            estimate = "cannot tell" if result["estimate"] is None else f"{result['estimate']:.1%}"
            suspects = result["suspects"][: len(flipped)]
            precision = f"{len(flipped & set(suspects)) / len(flipped):.2f}" if flipped else "-"
            print(f"{path.name.split('.')[0]}, {flips:.0%} flipped, seed {seed}: estimate {estimate}, precision at k "
                  f"{precision}, probe {result['probe_accuracy']:.3f}", flush=True)  # fmt: skip
            estimates.append({"file": path.name.split(".")[0], "flipped": flips, "seed": seed, "estimate": estimate,
                              "precision at k": precision})  # fmt: skip
    return estimates


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--files", default="truthfulqa,llmbar,tara,summedits")
    add_output(parser)
    options = parser.parse_args()
    rows = planted() + false_alarms()
    for name in options.files.split(","):
        rows += noise(Path(options.data) / f"{name}.jsonl.gz")
    write_results(options.output, rows)


if __name__ == "__main__":
    main()
