"""The inputs of a report: runs, score files and JSON files of results, told apart by their content."""

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plaudit.errors import DataError
from plaudit.evaluation.evaluate import evaluate_scores
from plaudit.evaluation.report_content import Scored
from plaudit.evaluation.score_files import Scores, read_scores

__all__ = ["as_dict", "name_scores", "read_report_inputs", "read_run"]

# A key that only this result has, and the argument of `write_report` that takes it.
_KINDS = {
    "findings": "audit", "losses": "learning_curve", "sqrt_kl": "best_of_n", "datasets": "evaluations",
    "probes": "probes", "separable": "comparisons", "comparisons": "comparisons",
}  # fmt: skip
_ALONE = ("audit", "learning_curve", "best_of_n")
_RESULTS = ("scores*.jsonl", "scores*.jsonl.gz", "*.json")
_RUN_FILES = ("reward.json", "trainer_state.json")


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
    found: dict[str, Any] = {"scores": [], "evaluations": [], "comparisons": []}
    for path in map(Path, paths):
        if path.is_dir():
            _put(found, "run", path, path)
            for file in dict.fromkeys(file for pattern in _RESULTS for file in sorted(path.glob(pattern))):
                _read_file(found, file, strict=False)
            if not any((path / name).is_file() for name in _RUN_FILES) and not _has_results(found):
                raise DataError(f"expected reward.json, score files or results in the folder {path}, found none.")
        else:
            _read_file(found, path)
    others: list[Scores] = []
    for path in map(Path, compare):
        beside: dict[str, Any] = {"scores": [], "evaluations": [], "comparisons": found["comparisons"]}
        _read_file(beside, path)
        others += beside["scores"]
        if beside["evaluations"] or set(beside) - {"scores", "evaluations", "comparisons"}:
            raise DataError(f"--compare {path}: expected a score file, or what `plaudit compare --output` writes.")
    if others:
        if not found["scores"]:
            raise DataError("--compare: expected a score file of this model too, to compare the others with.")
        from plaudit.evaluation.comparison import compare_several

        found["comparisons"] += compare_several([found["scores"][0], *others])
        found["reference"] = others[0]
    return found


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


def _read_file(found: dict[str, Any], path: Path, *, strict: bool = True) -> None:
    """Add the content of a file to the arguments of a report; without `strict`, leave unknown JSON out."""
    if not path.is_file():
        raise DataError(f"expected a file or a folder at {path}, but there is none.")
    if _is_score_file(path):
        found["scores"].append(read_scores(path))
        return
    try:
        content = _read_json(path)
    except DataError:
        if strict:
            raise
        return
    kind = next((kind for key, kind in _KINDS.items() if isinstance(content, Mapping) and key in content), None)
    if kind is None:
        if strict:
            raise DataError(
                f"{path}: expected a folder of a run, a score file (`plaudit eval --scores`), or the JSON of `plaudit "
                "audit`, `plaudit eval --output`, `plaudit compare --output` or a learning curve."
            )
    elif kind == "evaluations":
        for each in content["datasets"]:
            _add_evaluation(found, each, path)
    elif kind == "comparisons":
        found["comparisons"] += content["comparisons"] if "separable" not in content else [content]
    else:
        _put(found, kind, content["probes"] if kind == "probes" else content, path)


def _add_evaluation(found: dict[str, Any], evaluation: Mapping[str, Any], path: Path) -> None:
    """Add one dataset of the file of `plaudit eval --output`, with the probes and the curve that it may hold."""
    found["evaluations"].append(evaluation)
    for kind in ("probes", "best_of_n"):
        if evaluation.get(kind) is not None and kind not in found:
            _put(found, kind, evaluation[kind], path)


def _put(found: dict[str, Any], kind: str, value: Any, path: Path) -> None:
    if kind in found:
        raise DataError(f"{path}: a report has one {kind.replace('_', ' ')}, and this is the second. Leave one out.")
    found[kind] = value


def _has_results(found: Mapping[str, Any]) -> bool:
    return any(value for kind, value in found.items() if kind != "run")


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
