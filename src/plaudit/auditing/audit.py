"""`plaudit.audit`: what is wrong with preference data, before a model is trained on it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plaudit.auditing.agreement import krippendorff_alpha
from plaudit.auditing.biases import format_odds, length_share
from plaudit.auditing.conflicts import contradictions, cycles
from plaudit.auditing.findings import Finding, make_finding, rank
from plaudit.auditing.label_noise import estimate_noise, margins_of_scores
from plaudit.auditing.lenient_rows import read_prompt, read_row
from plaudit.auditing.preference_table import PreferenceTable, read_table
from plaudit.auditing.repetitions import (
    dominant_prompts,
    exact_duplicates,
    leaked_exactly,
    leaked_nearly,
    near_duplicates,
)
from plaudit.auditing.row_source import open_source, pick_rows, with_progress
from plaudit.auditing.token_lengths import longest_sequences, shares_over
from plaudit.errors import DataError
from plaudit.evaluation.baselines import cross_validate
from plaudit.evaluation.evaluate import finite_or_none
from plaudit.evaluation.word_counts import WordStore, presence_differences

__all__ = ["Audit", "audit", "cheap_findings"]

_LEAKS = ("leaked_exact", "leaked_near")
_NOISE_FROM, _ALPHA = 0.03, 0.4
_GRAVE_LENGTH = 0.15  # distance of the share from one half


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        dataset: Path or hub id of the data; `None` for rows that were passed in.
        against: Path or hub id of the test data, likewise.
        rows: Number of rows.
        prompts: Number of different prompts.
        comparisons: Number of comparisons; of a ranked group, at most ten are looked at.
        findings: What is wrong, grave things first and then by harm.
        baselines: Cross-validated accuracy of `longer`, `style` and `bag_of_words`, which need no model.
        baseline_intervals: The 95% interval of each by prompt.
        label_noise: See `plaudit.auditing.label_noise.estimate_noise`.
        length: See `plaudit.auditing.biases.length_share`.
        formats: See `plaudit.auditing.biases.format_odds`.
        agreement: `alpha` (Krippendorff's) and the number of `rows` with raters; `None` where no raters are given.
        truncation: Share of rows with a sequence of more tokens than each length; `None` without a tokenizer.
    """

    dataset: str | None
    against: str | None
    rows: int
    prompts: int
    comparisons: int
    findings: list[Finding]
    baselines: dict[str, float]
    baseline_intervals: dict[str, list[float]]
    label_noise: dict[str, Any]
    length: dict[str, float]
    formats: list[dict[str, Any]]
    agreement: dict[str, float] | None = None
    truncation: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all fields for JSON, with `None` for a figure that is not defined."""
        return finite_or_none(asdict(self))


def audit(
    dataset: Any,
    against: Any = None,
    *,
    tokenizer: Any = None,
    max_length: int = 1024,
    scores: Sequence[str | Path] = (),
    split: str | None = None,
    dataset_config: str | None = None,
    dataset_format: str | None = None,
    against_split: str | None = None,
) -> Audit:
    """Look for what is wrong with preference data before training.

    Args:
        dataset: A list of rows (pairs or ranked groups) or a `datasets.Dataset`; or a hub id, a file or a folder.
        against: Test data of the same kinds, whose prompts must not be in `dataset`; its rows need only a prompt.
        tokenizer: A tokenizer, or its path or hub id, to find the rows that training would cut.
        max_length: Most tokens of a sequence in training.
        scores: Score files of K models, each of the rows that its model did not train on. Their rewards find wrong
            labels better than the built-in probe does.
        split: The split of a dataset that is loaded: "train" if there is one, else the only one.
        dataset_config: The configuration of a hub dataset that has several.
        dataset_format: The published layout to convert rows from.
        against_split: The split of the test data: "test" if there is one, else "validation", else the only one.

    Raises:
        ConfigError: A split or a configuration is given with loaded rows.
        DataError: The data cannot be read, or a row is malformed in a way that no finding describes.
    """
    rows = open_source(dataset, split=split, config=dataset_config, dataset_format=dataset_format, defaults=("train",))
    table, words = read_table(with_progress(rows, "Reading"))
    if not len(table):
        raise DataError("expected rows to audit, but there are none")
    findings = [*_cheap_findings(table), *_duplicates(table, words)]
    prompts = [] if against is None else _test_prompts(against, against_split, dataset_format)
    findings += _leaks(table, words, prompts)
    texts = table.row_of + 1  # each row has the text of its prompt before those of its responses
    differences = presence_differences(words, table.better + texts, table.worse + texts)
    del words  # the most of the memory
    length, odds = length_share(table), format_odds(table)
    findings += _biases(table, length, odds)
    figures, margins = _baselines(table, differences)
    noise = _label_noise(table, margins, scores)
    agreement, disagreement = _agreement(table)
    truncation, truncated = _truncation(rows, len(table), tokenizer, max_length)
    findings += [*_noise_finding(noise, len(table)), *disagreement, *truncated]
    return Audit(
        dataset=str(dataset) if isinstance(dataset, str | Path) else None,
        against=str(against) if isinstance(against, str | Path) else None,
        rows=len(table),
        prompts=len(np.unique(table.prompts)),
        comparisons=len(table.better),
        findings=_with_examples(rank(findings), rows, prompts),
        baselines={name: each["accuracy"] for name, each in figures.items()},
        baseline_intervals={name: [each["low"], each["high"]] for name, each in figures.items()},
        label_noise=noise, length=length, formats=odds, agreement=agreement, truncation=truncation,
    )  # fmt: skip


def cheap_findings(dataset: Iterable[Any], against: Iterable[Any] | None = None) -> list[Finding]:
    """Return the findings that need no model and no search, for `plaudit train`.

    Args:
        dataset: Rows.
        against: Rows of the test data.
    """
    table, _ = read_table(with_progress(dataset, "Checking the data"), deep=False)
    findings = _cheap_findings(table)
    if against is not None:
        leaks = leaked_exactly(
            table,
            [read_prompt(row, index) for index, row in enumerate(with_progress(against, "Checking the test data"))],
        )
        findings += [make_finding("leaked_exact", leaks, len(table))] if leaks else []
    return rank(findings)


def _test_prompts(against: Any, split: str | None, dataset_format: str | None) -> list[str]:
    """Return the prompts of the test data, in the layout of the training data or in any that has a prompt."""
    for layout in dict.fromkeys((dataset_format, None)):
        defaults = ("test", "validation")
        try:
            rows = open_source(against, split=split, config=None, dataset_format=layout, defaults=defaults)
            return [read_prompt(row, index) for index, row in enumerate(with_progress(rows, "Reading the test data"))]
        except DataError:
            if layout is None:
                raise
    return []


def _cheap_findings(table: PreferenceTable) -> list[Finding]:
    found = {
        "contradiction": contradictions(table),
        "cycle": cycles(table),
        "duplicate_exact": exact_duplicates(table),
        "dominant_prompt": dominant_prompts(table),
    }
    findings = [make_finding(kind, groups, len(table)) for kind, groups in found.items() if groups]
    for kind, rows in table.checks.items():
        counted = Counter(filter(None, rows.values())).most_common()
        detail = "Found: " + ", ".join(f"{word} ({count:,})" for word, count in counted[:5]) if counted else ""
        if rows:
            findings.append(make_finding(kind, [[row] for row in rows], len(table), detail=detail))
    return findings


def _duplicates(table: PreferenceTable, words: WordStore) -> list[Finding]:
    groups = near_duplicates(table, words)
    return [make_finding("duplicate_near", groups, len(table))] if groups else []


def _leaks(table: PreferenceTable, words: WordStore, prompts: list[str]) -> list[Finding]:
    exact = leaked_exactly(table, prompts)
    found = {"leaked_exact": exact, "leaked_near": leaked_nearly(table, words, prompts, exact)}
    findings = []
    for kind, pairs in found.items():
        training, tests = ({pair[side] for pair in pairs} for side in (0, 1))
        detail = f"{len(tests):,} of {len(prompts):,} test rows are concerned, and {len(training):,} training rows."
        if pairs:
            findings.append(make_finding(kind, pairs, len(table), detail=detail))
    return findings


def _biases(table: PreferenceTable, length: dict[str, float], odds: list[dict[str, Any]]) -> list[Finding]:
    findings = []
    if length.get("significant"):
        longer = table.counts[table.better, 0] > table.counts[table.worse, 0]
        shorter = table.counts[table.better, 0] < table.counts[table.worse, 0]
        follow = longer if length["share"] > 0.5 else shorter
        concerned = len(np.unique(table.row_of[follow]))
        grave = abs(length["share"] - 0.5) >= _GRAVE_LENGTH
        word, ends = ("longer", ("low", "high")) if length["share"] > 0.5 else ("shorter", ("high", "low"))
        share, low, high = (length[end] if word == "longer" else 1 - length[end] for end in ("share", *ends))
        detail = f"The {word} response is chosen in {share:.1%} of the comparisons ({low:.1%} to {high:.1%})."
        findings.append(
            make_finding("length_bias", [], len(table), count=concerned, grave=grave, detail=detail, **length)
        )
    features = [each for each in odds if each["significant"]]
    if features:
        concerned = max(each["rows"] for each in features)
        detail = "; ".join(
            f"{each['feature']}: {each['chosen']:.1%} of chosen and {each['rejected']:.1%} of rejected responses"
            for each in features
        )
        findings.append(
            make_finding("format_bias", [], len(table), count=concerned, grave=False, detail=detail, features=features)
        )
    return findings


def _baselines(table: PreferenceTable, differences: Any) -> tuple[dict[str, dict[str, float]], NDArray[np.float64]]:
    """Return accuracy and interval of each baseline, and the margins of the bag of words, shape [C]."""
    nothing = {"accuracy": np.nan, "low": np.nan, "high": np.nan}
    if not len(table.better):
        return dict.fromkeys(("longer", "style", "bag_of_words"), nothing), np.empty(0)
    style = table.counts[table.better, :6].astype(np.float64) - table.counts[table.worse, :6]
    return cross_validate(style, differences, table.prompts[table.row_of], table.weights)


def _label_noise(table: PreferenceTable, margins: NDArray[np.float64], scores: Sequence[str | Path]) -> dict[str, Any]:
    if not scores:
        return estimate_noise(margins, table.prompts[table.row_of], table.row_of)
    from plaudit.evaluation.score_files import read_scores

    margins, rows = margins_of_scores([read_scores(path) for path in scores], len(table))
    return estimate_noise(margins, table.prompts[rows], rows, "the reward model")


def _noise_finding(noise: dict[str, Any], rows: int) -> list[Finding]:
    share = noise["estimate"]
    if share is None or share < _NOISE_FROM:
        return []
    suspects = [[row] for row in noise["suspects"]]
    return [
        make_finding("label_noise", suspects, rows, count=round(share * rows), detail=noise["verdict"], estimate=share)
    ]


def _agreement(table: PreferenceTable) -> tuple[dict[str, float] | None, list[Finding]]:
    """Return the agreement of raters, by votes or else by soft labels, and the finding that it is low."""
    votes = dict(table.votes)
    soft = np.flatnonzero(~np.isnan(table.labels))
    if not votes and ((table.labels[soft] % 1) > 0).any():
        # A soft label stands for very many raters.
        votes = {
            row: (round(1e6 * table.labels[row]), round(1e6 * (1 - table.labels[row])), 0) for row in soft.tolist()
        }
    alpha = krippendorff_alpha(votes.values())
    if np.isnan(alpha):
        return None, []
    split = sorted(
        (abs(first - other) / max(first + other + ties, 1), row)
        for row, (first, other, ties) in votes.items()
        if max(first, other, ties) < 0.75 * (first + other + ties)
    )
    detail = f"Krippendorff's alpha is {alpha:.2f}; 1 is perfect agreement, 0 that of dice."
    findings = [make_finding("low_agreement", [[row] for _, row in split], len(table), detail=detail, alpha=alpha)]
    return {"alpha": alpha, "rows": len(votes)}, findings if alpha < _ALPHA and split else []


def _truncation(
    rows: Iterable[Any], total: int, tokenizer: Any, max_length: int
) -> tuple[dict[str, float] | None, list[Finding]]:
    if tokenizer is None:
        return None, []
    if isinstance(tokenizer, str | Path):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    longest = longest_sequences(with_progress(rows, "Tokenising"), tokenizer)
    shares = shares_over(longest, max_length)
    groups = [[row] for row in np.flatnonzero(longest > max_length).tolist()]
    detail = f"{len(groups) / total:.1%} of the rows have more than {max_length:,} tokens."
    found = [make_finding("truncated", groups, total, detail=detail, max_length=max_length)] if groups else []
    return shares, found


def _with_examples(findings: list[Finding], rows: Iterable[Any], prompts: Sequence[str]) -> list[Finding]:
    """Return findings with the shortened texts of the first two rows of their first groups."""
    firsts = [finding.rows[0][: 1 if finding.kind in _LEAKS else 2] if finding.rows else [] for finding in findings]
    picked = pick_rows(rows, {row for group in firsts for row in group})
    examples = [[_example(picked[row], row) for row in group] for group in firsts]
    for finding, example in zip(findings, examples, strict=True):
        if finding.kind in _LEAKS:
            example[0] = {name: example[0][name] for name in ("row", "prompt")}
            test = finding.rows[0][1]
            example.append({"test_row": test, "prompt": _shorten(prompts[test])})
    return [replace(finding, example=example) for finding, example in zip(findings, examples, strict=True)]


def _example(raw: Any, number: int) -> dict[str, Any]:
    row = read_row(raw, number)
    by_rank = sorted(range(len(row.ranks)), key=row.ranks.__getitem__)
    texts = {"prompt": row.prompt, "chosen": row.responses[by_rank[0]], "rejected": row.responses[by_rank[-1]]}
    return {"row": number, **{name: _shorten(text) for name, text in texts.items()}}


def _shorten(text: str, most: int = 160) -> str:
    text = " ".join(text.split()) or "(no text)"
    return text if len(text) <= most else text[: most - 1] + "…"
