"""`plaudit.audit`: what is wrong with preference data, before a model is trained on it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plaudit.auditing.agreement import krippendorff_alpha
from plaudit.auditing.audit_rows import read_prompt, read_row
from plaudit.auditing.biases import format_odds
from plaudit.auditing.conflicts import contradictions, cycles
from plaudit.auditing.findings import Finding, make_finding, rank
from plaudit.auditing.label_noise import estimate_noise, margins_of_scores
from plaudit.auditing.preference_table import PreferenceTable, read_table
from plaudit.auditing.repetitions import dominant_prompts, groups_of, leaked_exactly, leaked_nearly, near_duplicates
from plaudit.auditing.row_source import open_source, with_progress
from plaudit.data.formats import parse_row
from plaudit.data.prompts import prompt_key
from plaudit.data.render import render
from plaudit.errors import ConfigError, DataError
from plaudit.evaluation.baselines import STYLE, cross_validate
from plaudit.evaluation.evaluate import finite_or_none
from plaudit.hub import reads_hub

__all__ = ["Audit", "audit", "cheap_findings"]

_LEAKS = ("leaked_exact", "leaked_near")
_NOISE_FROM, _ALPHA = 0.03, 0.4
_LENGTH, _GRAVE_LENGTH = 0.05, 0.15  # distances of the share of longer responses from one half
_TOKENS = (512, 1024, 2048, 4096, 8192)


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
    formats: list[dict[str, Any]]
    agreement: dict[str, float] | None = None
    truncation: dict[str, float] | None = None

    def __getitem__(self, name: str) -> Any:
        """Return an entry of the JSON, such as `audit["findings"]`, a list of dicts."""
        return self.to_dict()[name]

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
    table, signatures, words = read_table(with_progress(rows, "Reading"))
    if not len(table):
        raise DataError("expected rows to audit, but there are none")
    prompts = [] if against is None else _test_prompts(against, against_split, dataset_format)
    findings = [*_cheap_findings(table), *_leaks(table, signatures, prompts)]
    findings.append(make_finding("duplicate_near", near_duplicates(table, signatures), len(table)))
    del signatures  # more memory than all other columns
    differences = words.most_frequent()
    del words
    prompt_of = table.prompts[table.row_of]
    style = table.features[:, 0, : len(STYLE)].astype(np.float64) - table.features[:, 1, : len(STYLE)]
    figures, margins = cross_validate(style, differences, prompt_of, table.weights)
    odds = format_odds(table.features, prompt_of, table.row_of, table.weights)
    noise, noise_finding = _label_noise(table, margins, scores, rows)
    agreement, split_rows = _agreement(table)
    truncation, truncated = _truncation(rows, len(table), tokenizer, max_length)
    findings += [_length_finding(table, style[:, 0], figures["longer"]), _format_finding(odds, len(table))]
    findings += [noise_finding, *split_rows, *truncated]
    return Audit(
        dataset=str(dataset) if isinstance(dataset, str | Path) else None,
        against=str(against) if isinstance(against, str | Path) else None,
        rows=len(table),
        prompts=len(np.unique(table.prompts)),
        comparisons=len(table.better),
        findings=_with_examples(rank(findings), rows, prompts),
        baselines={name: each["accuracy"] for name, each in figures.items()},
        baseline_intervals={name: [each["low"], each["high"]] for name, each in figures.items()},
        label_noise=noise, formats=odds, agreement=agreement, truncation=truncation,
    )  # fmt: skip


def cheap_findings(dataset: Iterable[Any], against: Iterable[Any] | None = None) -> list[Finding]:
    """Return the findings that need no model and no search, for `plaudit train`, from rows and rows of test data."""
    table, *_ = read_table(with_progress(dataset, "Checking the data"), deep=False)
    tests = enumerate(with_progress(against or (), "Checking the test data"))
    leaks = leaked_exactly(table, [read_prompt(row, index) for index, row in tests])
    return rank([*_cheap_findings(table), make_finding("leaked_exact", leaks, len(table))])


def _test_prompts(against: Any, split: str | None, dataset_format: str | None) -> list[str]:
    """Return the prompts of the test data, in the layout of the training data or in any that has a prompt."""
    try:
        defaults = ("test", "validation")
        rows = open_source(against, split=split, config=None, dataset_format=dataset_format, defaults=defaults)
        return [read_prompt(row, index) for index, row in enumerate(with_progress(rows, "Reading the test data"))]
    except DataError:
        if dataset_format is None:
            raise
        return _test_prompts(against, split, None)


def _cheap_findings(table: PreferenceTable) -> Iterator[Finding]:
    found = {
        "contradiction": contradictions(table),
        "cycle": cycles(table),
        "duplicate_exact": groups_of(table.rows),
        "dominant_prompt": dominant_prompts(table),
    }
    for kind, groups in found.items():
        yield make_finding(kind, groups, len(table))
    for kind, rows in table.problems.items():
        counted = Counter(filter(None, rows.values())).most_common(5)
        detail = "Found: " + ", ".join(f"{word} ({count:,})" for word, count in counted) if counted else ""
        yield make_finding(kind, [[row] for row in rows], len(table), detail=detail)


def _leaks(table: PreferenceTable, signatures: NDArray[np.uint8], prompts: list[str]) -> Iterator[Finding]:
    if not prompts:
        return
    exact = leaked_exactly(table, prompts)
    for kind, pairs in zip(_LEAKS, (exact, leaked_nearly(table, signatures, prompts, exact)), strict=True):
        training, tests = ({pair[side] for pair in pairs} for side in (0, 1))
        detail = f"{len(tests):,} of {len(prompts):,} test rows are concerned, and {len(training):,} training rows."
        yield make_finding(kind, pairs, len(table), detail=detail)


def _length_finding(table: PreferenceTable, differences: NDArray[np.float64], figures: dict[str, float]) -> Finding:
    """Return the finding that one response is preferred for its length, of no rows where that is not so.

    The share has to be 5 points or more from one half, and an interval of 99.9% to exclude one half.
    """
    away = figures["accuracy"] - 0.5
    width = figures["accuracy"] - figures["low"] if away > 0 else figures["high"] - figures["accuracy"]
    clear = abs(away) >= max(_LENGTH, width * 3.29 / 1.96)
    follow = differences > 0 if away > 0 else differences < 0
    count, grave = len(np.unique(table.row_of[follow])) if clear else 0, abs(away) >= _GRAVE_LENGTH
    detail = (
        f"The longer response is preferred in {figures['accuracy']:.1%} of the comparisons ({figures['low']:.1%} to "
        f"{figures['high']:.1%}), equal lengths one half."
    )
    return make_finding("length_bias", [], len(table), count=count, grave=grave, detail=detail, **figures)


def _format_finding(odds: list[dict[str, Any]], rows: int) -> Finding:
    features = [each for each in odds if each["significant"]]
    detail = "; ".join(
        f"{each['feature']}: in {each['chosen']:.1%} of the chosen and {each['rejected']:.1%} of the rejected responses"
        for each in features
    )
    count = max((each["rows"] for each in features), default=0)
    return make_finding("format_bias", [], rows, count=count, grave=False, detail=f"{detail}.", features=features)


def _label_noise(
    table: PreferenceTable, margins: NDArray[np.float64], scores: Sequence[str | Path], raw: Iterable[Any]
) -> tuple[dict[str, Any], Finding]:
    """Return the estimate of label noise by the probe, or by score files where there are some, and its finding."""
    rows, source = table.row_of.astype(np.int64), "a bag of words"
    if scores:
        from plaudit.evaluation.score_files import read_scores

        margins, rows = margins_of_scores([read_scores(path) for path in scores], _places_by_texts(raw))
        source = f"on {len(np.unique(rows)):,} of {len(table):,} rows, the reward model"
    noise = estimate_noise(margins, table.prompts[rows], rows, source)
    share, suspects = noise["estimate"] or 0.0, [[row] for row in noise["suspects"]]
    count = round(share * len(table)) if share >= _NOISE_FROM else 0
    detail = f"{noise['verdict']}."
    return noise, make_finding("label_noise", suspects, len(table), count=count, detail=detail, estimate=share)


def _places_by_texts(rows: Iterable[Any]) -> dict[int, list[int]]:
    """Return the numbers of the rows by the key of their texts, as score files have it."""
    places: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        with suppress(DataError):  # training refuses the row, and so does scoring
            places.setdefault(prompt_key(parse_row(dict(row), index).sequences), []).append(index)
    return places


def _agreement(table: PreferenceTable) -> tuple[dict[str, float] | None, list[Finding]]:
    """Return the agreement of raters, by votes or else by soft labels, and the finding that it is low."""
    votes = table.votes
    if not votes and any(label % 1 for label in table.labels.values()):
        # A soft label stands for very many raters.
        votes = {row: (round(1e6 * each), round(1e6 * (1 - each)), 0) for row, each in table.labels.items()}
    alpha = krippendorff_alpha(votes.values())
    if np.isnan(alpha):
        return None, []
    shares = {row: np.divide(each, sum(each)) for row, each in votes.items()}
    split = sorted(
        (row for row, each in shares.items() if max(each) < 0.75), key=lambda row: abs(shares[row] @ (1, -1, 0))
    )
    detail = f"Krippendorff's alpha is {alpha:.2f}; 1 is perfect agreement, 0 that of dice."
    finding = make_finding("low_agreement", [[row] for row in split], len(table), detail=detail, alpha=alpha)
    return {"alpha": alpha, "rows": len(votes)}, [finding] if alpha < _ALPHA else []


@reads_hub("tokenizer")
def _truncation(
    rows: Iterable[Any], total: int, tokenizer: Any, max_length: int
) -> tuple[dict[str, float] | None, list[Finding]]:
    if tokenizer is None:
        return None, []
    if isinstance(tokenizer, str | Path):
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"expected a tokenizer at {tokenizer}, a folder or a hub id: {reason}") from error
    numbered = enumerate(with_progress(rows, "Tokenising"))
    longest = np.array([_longest_sequence(tokenizer, row, index) for index, row in numbered])
    shares = {str(length): float((longest > length).mean()) for length in sorted({*_TOKENS, max_length})}
    detail = f"{shares[str(max_length)]:.1%} of the rows have more than {max_length:,} tokens."
    groups = [[row] for row in np.flatnonzero(longest > max_length).tolist()]
    return shares, [make_finding("truncated", groups, total, detail=detail, max_length=max_length)]


def _longest_sequence(tokenizer: Any, row: Any, index: int) -> int:
    """Return the tokens of the longest sequence of a row, rendered as in training; 0 where training refuses it."""
    try:
        parsed = parse_row(dict(row), index)
    except DataError:  # a finding of its own
        return 0
    count = len(parsed.sequences)
    names = [f"row {index}"] * count
    return max(map(len, render(tokenizer, parsed.sequences, [parsed.template_options] * count, names=names)))


def _with_examples(findings: list[Finding], rows: Iterable[Any], prompts: Sequence[str]) -> list[Finding]:
    """Return findings with the shortened texts of the first rows of their first groups."""
    shown = {each.kind: (each.rows or [[]])[0][: 1 if each.kind in _LEAKS else 2] for each in findings}
    wanted = {row for group in shown.values() for row in group}
    picked = {number: row for number, row in enumerate(islice(rows, max(wanted, default=-1) + 1)) if number in wanted}
    for finding in findings:
        finding.example.extend(_example(picked[row], row) for row in shown[finding.kind])
        if finding.kind in _LEAKS:
            row, test = finding.rows[0]
            finding.example[0] = {"row": row, "prompt": finding.example[0]["prompt"]}
            finding.example.append({"test_row": test, "prompt": _shorten(prompts[test])})
    return findings


def _example(raw: Any, number: int) -> dict[str, Any]:
    row = read_row(raw, number)
    order = sorted(range(len(row.ranks)), key=row.ranks.__getitem__)
    texts = {"prompt": row.prompt, "chosen": row.responses[order[0]], "rejected": row.responses[order[-1]]}
    return {"row": number, **{name: _shorten(text) for name, text in texts.items()}}


def _shorten(text: str, most: int = 160) -> str:
    text = " ".join(text.split()) or "(no text)"
    return text if len(text) <= most else text[: most - 1] + "…"
