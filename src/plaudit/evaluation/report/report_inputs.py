"""The inputs of a report: runs, score files and JSON files of results, told apart by their content."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from plaudit.errors import DataError
from plaudit.evaluation.score_files import read_scores
from plaudit.evaluation.scores import Scores

__all__ = ["name_scores", "read_report_inputs", "read_results", "read_run"]

logger = logging.getLogger(__name__)

_RUN_SETTINGS = ("num_train_epochs", "max_steps", "global_step", "train_batch_size", "best_metric")
_LOG = "trainer_state.json"
# A key that only this result has, and the argument of `write_report` that takes it.
_KINDS = {"findings": "audit", "losses": "learning_curve", "separable": "comparisons", "comparisons": "comparisons"}


def read_report_inputs(paths: Sequence[str | Path], compare: Iterable[str | Path] = ()) -> dict[str, Any]:
    """Tell files and folders apart, and return them as arguments of `plaudit.evaluation.report.write_report`.

    Args:
        paths: Score files; JSON files of an audit, of an evaluation with probes or a best-of-n curve, of a comparison
            or a learning curve; and at most one folder of a training run, whose own files of these kinds count too.
        compare: Comparisons, or score files that the first of the score files is compared with. The first of these is
            the reference.

    Raises:
        DataError: A file is none of these, or there are two of a kind of which a report has one.
    """
    named = list({path.resolve(): path for path in map(Path, paths)}.values())
    folders = [path for path in named if path.is_dir()]
    if len(folders) > 1:
        raise DataError(f"expected one folder of a run, got {' and '.join(map(str, folders))}. Report on one by one.")
    found: dict[str, Any] = {"run": folders[0]} if folders else {}
    for path in (path for path in named if path not in folders):
        _put(found, path)
    for folder in folders:
        whole = [path.resolve() for path in named]
        for file in (file for pattern in ("scores*.jsonl*", "*.json") for file in sorted(folder.glob(pattern))):
            if file.resolve() not in whole:
                with suppress(DataError):  # of another kind, or a second one: a named file comes first
                    _put(found, file)
        if set(found) == {"run"} and not any((folder / name).is_file() for name in ("reward.json", _LOG)):
            raise DataError(f"expected reward.json, score files or results in the folder {folder}, found none.")
    others: dict[str, Any] = {}
    for path in map(Path, compare):
        _put(others, path)
    if others.keys() - {"scores", "comparisons"}:
        raise DataError("--compare: expected score files, or what `plaudit compare --output` writes.")
    if "scores" in others:
        if "scores" not in found:
            raise DataError("--compare: expected a score file of this model too, to compare the others with.")
        from plaudit.evaluation.comparison import compare_several

        others.setdefault("comparisons", []).extend(compare_several([found["scores"][0], *others["scores"]]))
        found["reference"] = others["scores"][0]
    return found | {"comparisons": [*found.get("comparisons", []), *others.get("comparisons", [])]}


def _put(found: dict[str, Any], path: Path) -> None:
    """Add a file to the arguments of `write_report` that take its content."""
    if not path.is_file():
        raise DataError(f"expected a file or a folder at {path}, but there is none.")
    content: Any = None
    with suppress(ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
    kinds = [_KINDS[key] for key in _KINDS if isinstance(content, dict) and key in content][:1]
    kinds = kinds or [kind for kind in ("probes", "best_of_n") if _of_evaluation(content, kind)]
    if not kinds and isinstance(content, dict) and "datasets" in content:
        logger.info("%s has neither probes nor a best-of-n curve; the figures come from score files.", path)
        return
    if not kinds and path.suffix == ".json":
        raise DataError(
            f"{path}: expected a score file (`plaudit eval --scores`), a learning curve, or the JSON of `plaudit "
            "audit`, `plaudit compare --output` or, with probes or a best-of-n curve, `plaudit eval --output`."
        )
    for kind in kinds or ["scores"]:
        if kind in ("scores", "comparisons"):
            found.setdefault(kind, []).append(path)
        elif kind in found:
            raise DataError(
                f"{path}: a report has one {kind.replace('_', ' ')}, and this is the second. Leave one out."
            )
        else:
            found[kind] = path


def read_results(source: Any, kind: str) -> list[Any]:
    """Return results as JSON values: from a file, from an object with `to_dict`, or as they are; none of `None`.

    A file of comparisons holds several. All probes are one result.
    """
    content = _read_json(Path(source)) if isinstance(source, (str, Path)) else source
    if isinstance(source, (list, tuple)):
        content = [each.to_dict() if hasattr(each, "to_dict") else each for each in source]
    content = content.to_dict() if hasattr(content, "to_dict") else _of_evaluation(content, kind) or content
    if kind == "comparisons" and "separable" not in content:
        return list(content["comparisons"])
    return [content] if content else []


def _of_evaluation(content: Any, kind: str) -> Any:
    """Return the probes or the best-of-n curve that `plaudit eval --output` wrote, of the first dataset with them."""
    datasets = content.get("datasets") if isinstance(content, dict) else None
    return next((each[kind] for each in datasets or () if isinstance(each, dict) and each.get(kind)), None)


def read_run(run: str | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return `name`, `metadata` (of `reward.json`) and `log_history` of the folder of a run, or such a dictionary."""
    if run is None or isinstance(run, Mapping):
        return {"name": None, "metadata": {}, "log_history": []} | dict(run or {})
    metadata, log = (_read_json(path) if path.is_file() else {} for path in (Path(run, "reward.json"), Path(run, _LOG)))
    if settings := {name: log[name] for name in _RUN_SETTINGS if name in log}:
        metadata |= {"run": settings}
    return {"name": Path(run).resolve().name, "metadata": metadata, "log_history": log.get("log_history", [])}


def name_scores(files: Sequence[Scores | str | Path]) -> dict[str, Scores]:
    """Read score files, and name each by its dataset, its model or both, by what tells the files apart."""
    scores = [read_scores(file) if isinstance(file, (str, Path)) else file for file in files]
    named = ((each.header.get("benchmark"), (each.header.get("dataset") or {}).get("path")) for each in scores)
    data = [Path(benchmark or path or "evaluated rows").name for benchmark, path in named]
    columns = [data, [Path(each.header.get("model") or "").name for each in scores]]
    columns = [column for column in columns if len(set(column)) > 1] or columns[:1]
    names = [", ".join(each) for each in zip(*columns, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{name} ({place})" for place, name in enumerate(names, 1)]
    return dict(zip(names, scores, strict=True))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: expected JSON ({error}).") from error
