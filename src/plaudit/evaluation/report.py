"""The report: one HTML file without scripts that shows what a reward model learnt, and what is wrong with it."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from plaudit.checkpoint.atomic import write_atomically
from plaudit.errors import PlauditError
from plaudit.evaluation.alerts import Alert
from plaudit.evaluation.evaluate import evaluate_scores
from plaudit.evaluation.report_content import Content, Scored, fill_content, first_of_datasets
from plaudit.evaluation.score_files import Scores, read_scores
from plaudit.evaluation.wrong_pairs import load_texts, most_confidently_wrong, set_side_by_side

__all__ = ["Report", "report_on_training", "write_report"]

_MOST_BYTES = 1_000_000
_CHARACTERS = (4000, 2000, 1200, 700, 350, 150)  # of a response: the most with which a report is small enough


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
        evaluations: Evaluations without scores, for their figures alone.
        audit: An audit of the training data.
        probes: A list of results of probes.
        comparisons: Comparisons with other models.
        learning_curve: A learning curve.
        best_of_n: A best-of-n curve.
        reference: A score file of another model on the dataset of the first, whose distribution is drawn beside it.
        examples: The most wrong pairs of each dataset.
        title: The title; by default, it names the run or the model.

    Raises:
        ConfigError: matplotlib is not installed.
        DataError: A score file cannot be read, or has no row with a preference.

    Example:
        write_report("report.html", run="my-reward-model", scores=["scores.jsonl"], audit="audit.json")
    """
    scored = _read_scored(scores)
    described = _read_run(run)
    content = fill_content(
        scored,
        described,
        evaluations=[_as_dict(each) for each in evaluations],
        audit=_as_dict(audit),
        probes=_read_probes(probes),
        comparisons=[_as_dict(each) for each in comparisons],
        learning_curve=_as_dict(learning_curve),
        best_of_n=_as_dict(best_of_n),
        reference=None if reference is None else _read(reference),
    )
    name = described.get("name") or (scored[0].model if scored else "evaluation")
    html = _render(content, first_of_datasets(scored), examples, title or f"Reward model: {name}")
    write_atomically(Path(output), html)
    return Report(Path(output), len(html), content.alerts)


def report_on_training(
    folder: str | Path, log_history: Sequence[Mapping[str, Any]] = (), *, output: str | Path | None = None, **results: Any
) -> Report:
    """Write `report.html` into the folder of a run that has just ended.

    Args:
        folder: The folder of the run, with `reward.json`.
        log_history: `trainer.state.log_history`.
        output: Another file to write.
        **results: Further arguments of `write_report`, such as `scores` and `audit`.
    """
    run = _read_run(folder) | ({"log_history": list(log_history)} if log_history else {})
    return write_report(output or Path(folder, "report.html"), run=run, **results)


# Inputs


def _read(scores: Scores | str | Path) -> Scores:
    return scores if isinstance(scores, Scores) else read_scores(scores)


def _read_scored(files: Sequence[Scores | str | Path]) -> list[Scored]:
    """Return score files with names: of the dataset, of the model, or of both, by what tells the files apart."""
    scores = [_read(file) for file in files]
    data = [each.header.get("benchmark") or _short_name((each.header.get("dataset") or {}).get("path")) for each in scores]
    models = [_short_name(each.header.get("model")) or "model" for each in scores]
    pairs = Counter(zip(data, models, strict=True))
    for place in range(len(scores) - 1, -1, -1):
        if (count := pairs[data[place], models[place]]) > 1:
            pairs[data[place], models[place]] -= 1
            models[place] += f" ({count})"
    parts = [column for column in (data, models) if len(set(column)) > 1] or [data]
    names = [", ".join(each or "rows" for each in name) for name in zip(*parts, strict=True)]
    return [
        Scored(each, evaluate_scores(each), model, name)
        for each, model, name in zip(scores, models, names, strict=True)
    ]


def _short_name(path: str | None) -> str | None:
    """Return the last part of a path; a hub id stays as it is."""
    if path is None or path.count("/") == 1 and not path.startswith(("/", ".")):
        return path
    return Path(path).name


def _as_dict(value: Any) -> Any:
    if isinstance(value, (str, Path)):
        return json.loads(Path(value).read_text(encoding="utf-8"))
    return value.to_dict() if hasattr(value, "to_dict") else value


def _read_probes(probes: Any) -> list[dict[str, Any]] | None:
    found = _as_dict(probes)
    found = found.get("probes") if isinstance(found, Mapping) else found
    return None if found is None else [_as_dict(each) for each in found]


def _read_run(run: str | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return `name`, `metadata` and `log_history` of a run."""
    if run is None or isinstance(run, Mapping):
        return dict(run or {})
    folder = Path(run)
    metadata = folder / "reward.json"
    checkpoints = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name[11:]))
    log = next((path for path in (folder / "trainer_state.json", *reversed(checkpoints)) if path.is_file()), None)
    return {
        "name": folder.resolve().name,
        "metadata": _as_dict(metadata) if metadata.is_file() else {},
        "log_history": _as_dict(log).get("log_history", []) if log else [],
    }


# The file


def _render(content: Content, scored: Sequence[Scored], examples: int, title: str) -> bytes:
    """Return the file, with so many characters of each response that it is small."""
    from jinja2 import Environment

    template = files("plaudit.evaluation").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template)
    pairs = [_load_pairs(each, examples) for each in scored]
    pairs = [each for each in pairs if each["pairs"]]
    html = b""
    for characters in _CHARACTERS:
        shown = [each | {"shown": _shown(each, characters)} for each in pairs]
        html = page.render(
            title=title, version=version("plaudit"), pairs=shown, sections=content.sections(bool(pairs)),
            **vars(content),
        ).encode(errors="replace")  # half of a surrogate pair is no text  # fmt: skip
        if len(html) <= _MOST_BYTES:
            break
    return html


def _load_pairs(scored: Scored, examples: int) -> dict[str, Any]:
    """Return the wrong pairs of a score file with their texts, or the reason why there are none."""
    pairs = most_confidently_wrong(scored.scores, examples)
    loaded: dict[str, Any] = {"name": scored.name, "pairs": pairs, "texts": {}, "problem": None, "table": []}
    try:
        loaded["texts"] = load_texts(scored.scores, [pair.row for pair in pairs])
    except PlauditError as error:
        loaded["problem"] = str(error).rstrip(".")
        loaded["table"] = [
            [str(pair.row), pair.id or "", pair.subset or "", str(pair.better), str(pair.worse),
             f"{pair.better_reward:.2f}", f"{pair.worse_reward:.2f}", f"{pair.confidence:.1%}"]
            for pair in pairs
        ]  # fmt: skip
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
