"""The inputs of a report: runs, score files and JSON files of results, told apart by their content."""

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from plaudit.errors import DataError
from plaudit.evaluation.evaluate import evaluate_scores
from plaudit.evaluation.report.report_content import Scored
from plaudit.evaluation.score_files import Scores, read_scores

__all__ = ["as_dict", "name_scores", "read_report_inputs", "read_run"]

# A key that only this result has, and the argument of `write_report` that takes it.
_KINDS = {
    "findings": "audit", "losses": "learning_curve", "sqrt_kl": "best_of_n", "datasets": "evaluations",
    "probes": "probes", "separable": "comparisons", "comparisons": "comparisons",
}  # fmt: skip
_RESULTS = ("scores*.jsonl", "scores*.jsonl.gz", "*.json")


def read_report_inputs(paths: Sequence[str | Path], compare: Iterable[str | Path] = ()) -> dict[str, Any]:
    """Read files and folders, and return them as arguments of `plaudit.evaluation.report.write_report`.

    Args:
        paths: Score files; JSON files of an audit, an evaluation, probes, a comparison, a learning curve or a best-of-n
            curve; and at most one folder of a training run, whose own files of these kinds are read too.
        compare: Comparisons, or score files that the first of the score files is compared with. The first of these is
            the reference.

    Raises:
        DataError: A file is none of these, or there are two of a kind of which a report has one.
    """
    named = {path.resolve(): path for path in map(Path, paths)}
    folders = [path for path in named.values() if path.is_dir()]
    if len(folders) > 1:
        raise DataError(f"expected one folder of a run, got {' and '.join(map(str, folders))}. Report on one by one.")
    found: dict[str, Any] = {"run": folders[0]} if folders else {}
    for path in (path for path in named.values() if path not in folders):
        kind, value = _read_result(path)
        _put(found, kind, value, path)
    for folder in folders:
        files = {file.resolve(): file for pattern in _RESULTS for file in sorted(folder.glob(pattern))}
        for file in (file for whole, file in files.items() if whole not in named):
            with suppress(DataError):  # of another kind, or a second one: a named file comes first
                kind, value = _read_result(file)
                _put(found, kind, value, file)
        if not (folder / "reward.json").is_file() and not read_run(folder)["log_history"] and set(found) == {"run"}:
            raise DataError(f"expected reward.json, score files or results in the folder {folder}, found none.")
    return found | _compare(found, [Path(path) for path in compare])


def _compare(found: Mapping[str, Any], paths: Sequence[Path]) -> dict[str, Any]:
    """Return `comparisons` and `reference` with what --compare names."""
    comparisons, others = list(found.get("comparisons", [])), list[Scores]()
    for path in paths:
        kind, value = _read_result(path)
        if kind not in ("comparisons", "scores"):
            raise DataError(f"--compare {path}: expected a score file, or what `plaudit compare --output` writes.")
        (others if kind == "scores" else comparisons).extend(value)
    if not others:
        return {"comparisons": comparisons}
    if not found.get("scores"):
        raise DataError("--compare: expected a score file of this model too, to compare the others with.")
    from plaudit.evaluation.comparison import compare_several

    comparisons += compare_several([found["scores"][0], *others])
    return {"comparisons": comparisons, "reference": others[0]}


def read_run(run: str | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return `name`, `metadata` (of `reward.json`) and `log_history` of the folder of a run, or of such a dictionary.

    The log is that of `trainer_state.json` in the folder, or else in its last checkpoint.
    """
    if run is None or isinstance(run, Mapping):
        return dict(run or {})
    folder = Path(run)
    checkpoints = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda file: (len(str(file)), str(file)))
    logs = [file for file in (folder / "trainer_state.json", *reversed(checkpoints)) if file.is_file()]
    metadata = folder / "reward.json"
    return {
        "name": folder.resolve().name,
        "metadata": as_dict(metadata) if metadata.is_file() else {},
        "log_history": as_dict(logs[0]).get("log_history", []) if logs else [],
    }


def as_dict(value: Any) -> Any:
    """Return a result as JSON values: from a file, from an object with `to_dict`, or as it is."""
    if isinstance(value, (str, Path)):
        return _read_json(Path(value))
    return value.to_dict() if hasattr(value, "to_dict") else value


def name_scores(files: Sequence[Scores | str | Path]) -> list[Scored]:
    """Read score files, and name each by its dataset, its model or both, by what tells the files apart."""
    scores = [read_scores(file) if isinstance(file, (str, Path)) else file for file in files]
    named = [each.header.get("dataset") or {} for each in scores]
    data = [
        each.header.get("benchmark") or _short(dataset.get("path")) or "rows"
        for each, dataset in zip(scores, named, strict=True)
    ]
    models = [_short(each.header.get("model")) or "model" for each in scores]
    seen: Counter[tuple[str, str]] = Counter()
    for place, key in enumerate(zip(data, models, strict=True)):
        seen[key] += 1
        models[place] += f" ({seen[key]})" if seen[key] > 1 else ""
    parts = [column for column in (data, models) if len(set(column)) > 1] or [data]
    names = [", ".join(each) for each in zip(*parts, strict=True)]
    columns = zip(scores, models, data, names, strict=True)
    return [Scored(each, evaluate_scores(each), model, of, name) for each, model, of, name in columns]


def _short(path: str | None) -> str | None:
    """Return the last part of a path; a hub id stays as it is."""
    is_path = path is not None and (path.startswith(("/", ".", "~")) or path.count("/") != 1)
    return Path(path).name if path is not None and is_path else path


def _read_result(path: Path) -> tuple[str, Any]:
    """Return the argument of `write_report` that takes the content of a file, and the content."""
    if not path.is_file():
        raise DataError(f"expected a file or a folder at {path}, but there is none.")
    if _is_score_file(path):
        return "scores", [read_scores(path)]
    content = _read_json(path)
    kind = next((kind for key, kind in _KINDS.items() if isinstance(content, Mapping) and key in content), None)
    if kind is None:
        raise DataError(
            f"{path}: expected a folder of a run, a score file (`plaudit eval --scores`), or the JSON of `plaudit "
            "audit`, `plaudit eval --output`, `plaudit compare --output` or a learning curve."
        )
    if kind == "comparisons":
        return kind, [content] if "separable" in content else content["comparisons"]
    return kind, content[kind] if kind == "probes" else content["datasets"] if kind == "evaluations" else content


def _put(found: dict[str, Any], kind: str, value: Any, path: Path) -> None:
    """Add a result to the arguments of a report; an evaluation may bring probes and a best-of-n curve."""
    if kind in ("scores", "evaluations", "comparisons"):
        found[kind] = found.get(kind, []) + value
    elif kind in found:
        raise DataError(f"{path}: a report has one {kind.replace('_', ' ')}, and this is the second. Leave one out.")
    else:
        found[kind] = value
    for inner in ("probes", "best_of_n") if kind == "evaluations" else ():
        for evaluation in value:
            if evaluation.get(inner) is not None:
                found.setdefault(inner, evaluation[inner])


def _is_score_file(path: Path) -> bool:
    """Return whether the first line is an object with `rewards`, or the header of a score file."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            first = json.loads(next(iter(lines), ""))
    except (ValueError, OSError):
        return False
    return isinstance(first, dict) and ("rewards" in first or first.get("format") == "plaudit-scores")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: expected JSON ({error}).") from error
