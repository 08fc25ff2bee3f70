"""The report: one HTML file without scripts that shows what a reward model learnt, and what is wrong with it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from plaudit.checkpoint.atomic import write_atomically
from plaudit.errors import PlauditError
from plaudit.evaluation.report.alerts import Alert
from plaudit.evaluation.report.report_content import Content, Scored, fill_content, first_of_datasets
from plaudit.evaluation.report.report_inputs import as_dict, name_scores, read_run
from plaudit.evaluation.report.report_tables import Columns, make_table, number, percent
from plaudit.evaluation.report.wrong_pairs import load_texts, most_confidently_wrong, set_side_by_side
from plaudit.evaluation.score_files import Scores, read_scores

__all__ = ["Report", "report_on_training", "write_report"]

_MOST_BYTES = 1_000_000
_CHARACTERS = (2000, 1200, 700, 350, 150)  # of a response: the most with which a report is small enough
_PAIRS: Columns = {
    "row": ("row", str), "id": ("id", str), "subset": ("subset", str), "better": ("better", str),
    "worse": ("worse", str), "better_reward": ("reward of the better", number),
    "worse_reward": ("reward of the worse", number), "confidence": ("confidence", percent),
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        path: The file.
        size: Its size in bytes.
        alerts: The verdicts on its top, the gravest first.
    """

    path: Path
    size: int
    alerts: list[Alert]


def write_report(
    output: str | Path,
    *,
    run: str | Path | Mapping[str, Any] | None = None,
    scores: Sequence[Scores | str | Path] = (),
    rows: Sequence[Any] | None = None,
    evaluations: Sequence[Any] = (),
    audit: Any = None,
    probes: Any = None,
    comparisons: Sequence[Any] = (),
    learning_curve: Any = None,
    best_of_n: Any = None,
    reference: Scores | str | Path | None = None,
    examples: int = 20,
    title: str | None = None,
) -> Report:
    """Write one self-contained HTML file about a reward model, and return its alerts.

    Each result is an object with `to_dict`, such a dictionary, or the path of the JSON file that holds it. The same
    inputs give the same bytes. The file loads nothing, runs no script, and follows the light or dark mode of its
    reader.

    Args:
        output: The HTML file.
        run: The folder of a training run, of which `reward.json` and the log are read; or a dictionary of `name`,
            `metadata` (the content of `reward.json`) and `log_history`.
        scores: Score files, or their scores. Several files of one dataset are shown as seeds or members.
        rows: The rows of the first dataset, for the texts of its wrong pairs; by default, each dataset is loaded as its
            score file names it.
        evaluations: Evaluations, whose figures are shown where there are no scores.
        audit: An audit of the training data.
        probes: A list of results of probes.
        comparisons: Comparisons with other models.
        learning_curve: A learning curve.
        best_of_n: A best-of-n curve.
        reference: Scores of another model on the first dataset, whose distribution is drawn beside.
        examples: The most wrong pairs of each dataset.
        title: The title; by default, it names the run or the model.

    Raises:
        ConfigError: matplotlib is not installed.
        DataError: A score file cannot be read, or has no row with a preference.
    """
    scored, described = name_scores(scores), read_run(run)
    content = fill_content(
        scored,
        described,
        evaluations=[as_dict(each) for each in evaluations],
        audit=as_dict(audit),
        probes=None if probes is None else [as_dict(each) for each in as_dict(probes)],
        comparisons=[as_dict(each) for each in comparisons],
        learning_curve=as_dict(learning_curve),
        best_of_n=as_dict(best_of_n),
        reference=read_scores(reference) if isinstance(reference, (str, Path)) else reference,
    )
    datasets = first_of_datasets(scored)
    pairs = [_load_pairs(each, rows if each is scored[0] else None, examples) for each in datasets]
    name = described.get("name") or (scored[0].model if scored else "evaluation")
    html = _render(content, [each for each in pairs if each["pairs"]], title or f"Reward model: {name}")
    write_atomically(Path(output), html)
    return Report(Path(output), len(html), content.alerts)


def report_on_training(folder: str | Path, log_history: Sequence[Mapping[str, Any]], **results: Any) -> Report:
    """Write `report.html` into the folder of a run that has just ended.

    Args:
        folder: The folder of the run, with `reward.json`.
        log_history: `trainer.state.log_history`.
        **results: Further arguments of `write_report`, such as `scores`, `rows` and `audit`.
    """
    run = read_run(folder) | {"log_history": list(log_history)}
    return write_report(Path(folder, "report.html"), run=run, **results)


def _render(content: Content, pairs: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """Return the file, with so many characters of each response that it is small."""
    from jinja2 import Environment

    template = files("plaudit.evaluation.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template)
    html = b""
    for characters in _CHARACTERS:
        shown = [{**each, "shown": _shown(each, characters)} for each in pairs]
        html = page.render(title=title, version=version("plaudit"), pairs=shown, **vars(content)).encode(
            errors="replace"
        )  # half of a surrogate pair is no text
        if len(html) <= _MOST_BYTES:
            break
    return html


def _load_pairs(scored: Scored, rows: Sequence[Any] | None, examples: int) -> dict[str, Any]:
    """Return the wrong pairs of a score file with their texts, or with the reason why there are none."""
    pairs = most_confidently_wrong(scored.scores, examples)
    loaded: dict[str, Any] = {"name": scored.name, "pairs": pairs, "texts": {}, "problem": None, "table": None}
    try:
        loaded["texts"] = load_texts(scored.scores, [pair.row for pair in pairs], rows)
    except PlauditError as error:
        loaded["problem"] = str(error).rstrip(".")
        loaded["table"] = make_table("Wrong comparisons", _PAIRS, [asdict(pair) for pair in pairs])
    return loaded


def _shown(loaded: Mapping[str, Any], characters: int) -> list[Any]:
    """Return each pair with its prompt and the passages of its responses."""
    shown = []
    for pair in loaded["pairs"] if loaded["texts"] else ():
        prompt, responses = loaded["texts"][pair.row]
        sides = set_side_by_side(responses[pair.better], responses[pair.worse], characters)
        half = characters // 4
        middle = f" [{len(prompt) - 2 * half:,} characters left out] "
        short = prompt if len(prompt) <= 2 * half + len(middle) else prompt[:half] + middle + prompt[-half:]
        shown.append((pair, short, sides))
    return shown
