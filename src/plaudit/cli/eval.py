"""`plaudit eval`: the agreement of a reward model with people, from a model or from a score file, and its limits."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from plaudit.cli import display, evaluation_tables
from plaudit.cli.aggregate_options import aggregate_options
from plaudit.cli.dataset_options import dataset_options
from plaudit.cli.model_options import model_options, options_of_server
from plaudit.cli.output_files import check_output
from plaudit.errors import ConfigError

if TYPE_CHECKING:
    from plaudit.evaluation.evaluate import Evaluation
    from plaudit.scoring.base_reward_model import BaseRewardModel

__all__ = ["command"]


@click.command("eval")
@click.argument("model", required=False)
@click.argument("data", nargs=-1)
@dataset_options("Split to evaluate on.  [default: test, else validation, else the only one]")
@click.option(
    "--benchmark", "benchmarks", multiple=True, metavar="NAME",
    help="Evaluate on a published benchmark by its own rule, such as rewardbench-2. May be repeated.",
)  # fmt: skip
@click.option(
    "--data", "copy", metavar="PATH",
    help="Copy of the benchmark's files, or a hub id; with several benchmarks, a folder with a folder for each name. "
    "Without MODEL, the dataset that the rewards of --scores belong to.",
)  # fmt: skip
@click.option(
    "--scores", metavar="FILE",
    help="Score file (.jsonl or .jsonl.gz) to write; for several datasets, a folder. Without MODEL, the file to read.",
)  # fmt: skip
@click.option(
    "--probes", multiple=True, metavar="NAME",
    help="Probe the model by changes of the texts: all, or names, such as padding,swap. May be repeated.",
)  # fmt: skip
@click.option("--best_of_n", is_flag=True, help="Best-of-n curve of groups with `scores`, which are taken as gold.")
@aggregate_options("The reward that --best_of_n chooses by")
@click.option("--save_temperature", is_flag=True, help="Write the temperature fitted on DATA into MODEL's reward.json.")
@model_options
@click.option("--output", help="JSON file for all figures.")
@click.option(
    "--fail_under", multiple=True, metavar="METRIC=VALUE",
    help="Exit with 1 if a figure of any dataset is less, such as accuracy=0.7. May be repeated.",
)  # fmt: skip
@click.option(
    "--fail_over", multiple=True, metavar="METRIC=VALUE",
    help="Exit with 1 if a figure of any dataset is greater, such as log_loss=0.69. May be repeated.",
)  # fmt: skip
def command(
    model: str | None,
    data: tuple[str, ...],
    split: str | None,
    dataset_config: str | None,
    dataset_format: str | None,
    benchmarks: tuple[str, ...],
    copy: str | None,
    scores: str | None,
    probes: tuple[str, ...],
    best_of_n: bool,
    aggregate: str,
    k: float,
    save_temperature: bool,
    output: str | None,
    fail_under: tuple[str, ...],
    fail_over: tuple[str, ...],
    **options: Any,
) -> None:
    """Evaluate MODEL on DATA: files, folders or hub ids of pairs or ranked groups.

    MODEL is a folder, a hub id, or the address of a `plaudit serve`, whose key is read from PLAUDIT_API_KEY.

    Each dataset has a table, and several have a summary. Beside the accuracy stands that of preferring the longer and
    the shorter response, which a reward model has to exceed. `--scores` alone evaluates a score file without a model.
    """
    from plaudit.evaluation.limits import failures, parse_limit

    limits = [parse_limit(text, upper=False) for text in fail_under]
    limits += [parse_limit(text, upper=True) for text in fail_over]
    check_output("--output", output)
    if (aggregate != "mean" or k != 1) and not best_of_n:
        raise ConfigError("--aggregate and --k: expected --best_of_n with them; figures of pairs are of the reward.")
    data_options = {"split": split, "dataset_config": dataset_config, "dataset_format": dataset_format}
    if model is not None and not data and not benchmarks and copy is None and _are_rows_and_scores(model, scores):
        model, copy = None, model  # a model is a folder or a hub id, and never a file
    _check_sources(model, data, benchmarks, copy, scores)
    if model is None:
        if probes or save_temperature:
            raise ConfigError("--probes and --save_temperature need MODEL and DATA, not a score file.")
        found = iter([_read_scores(str(scores), copy, data_options)])
    else:
        _check_model_options(model, data, benchmarks, probes, save_temperature)
        _check_copies(benchmarks, copy)
        if best_of_n:
            _check_gold(data, benchmarks, data_options)
        sources = [*data, *benchmarks]
        files = _score_files(scores, sources)
        reward_model = _open_model(model, options)
        reward_model.score([], aggregate=aggregate, k=k)  # refuses what the model cannot give, before rows are scored
        found = _evaluations(reward_model, data, benchmarks, copy, data_options, probes, files)
    entries, evaluations = [], []
    for evaluation, probed in found:
        evaluation_tables.show_evaluation(evaluation)
        entry = evaluation.to_dict()
        if probed is not None:
            evaluation_tables.show_probes(probed)
            entry["probes"] = [each.to_dict() for each in probed]
        if best_of_n:
            entry["best_of_n"] = _best_of_n(evaluation, aggregate, k)
        entries.append(entry)
        evaluations.append(evaluation)
    if save_temperature and model is not None:
        _save_temperature(model, evaluations[0])
    failed = [line for each in evaluations for line in failures(each, limits)]
    _finish(model, entries, evaluations, failed, output)


def _finish(
    model: str | None,
    entries: list[dict[str, Any]],
    evaluations: "list[Evaluation]",
    failed: list[str],
    output: str | None,
) -> None:
    """Show the summary, write the file, and end with the exit code."""
    from plaudit.checkpoint.atomic import write_atomically
    from plaudit.evaluation.evaluate import finite_or_none, mean_figures

    means = mean_figures(evaluations)
    if len(evaluations) > 1:
        evaluation_tables.show_summary(evaluations, means)
    if output is not None:
        content = {"model": model, "datasets": entries, "mean": finite_or_none(means), "failed": failed}
        write_atomically(Path(output), json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    for line in failed:
        display.console.print("[red]FAILED[/red]", escape(line), soft_wrap=True)
    sys.exit(1 if failed else 0)


def _are_rows_and_scores(path: str, scores: str | None) -> bool:
    return scores is not None and Path(path).expanduser().is_file() and Path(scores).expanduser().is_file()


def _check_sources(
    model: str | None, data: tuple[str, ...], benchmarks: tuple[str, ...], copy: str | None, scores: str | None
) -> None:
    if model is None and scores is None:
        raise ConfigError(
            "expected MODEL and DATA, or --scores FILE. `plaudit eval MODEL DATA` evaluates a model on preferences, "
            "`plaudit eval MODEL --benchmark NAME` on a benchmark, `plaudit eval --scores FILE` a score file."
        )
    if model is not None and not data and not benchmarks:
        raise ConfigError(f"expected DATA to evaluate {model} on: a file, a folder or a hub id, or --benchmark NAME.")
    if model is None and benchmarks:
        raise ConfigError("--benchmark: expected MODEL, which scores its rows; a score file names its own benchmark.")
    if model is not None and copy is not None and not benchmarks:
        raise ConfigError(f"--data {copy}: expected --benchmark with it. Give other data without an option.")


def _check_model_options(
    model: str, data: tuple[str, ...], benchmarks: tuple[str, ...], probes: tuple[str, ...], save_temperature: bool
) -> None:
    if probes and benchmarks:
        raise ConfigError("--probes: expected DATA in one of Plaudit's formats, not a benchmark.")
    if save_temperature and (len(data) != 1 or benchmarks):
        raise ConfigError("--save_temperature: expected one dataset, on which the temperature is fitted.")
    if save_temperature and not Path(model).expanduser().is_dir():
        raise ConfigError(f"--save_temperature: expected the model's folder, got {model!r}, which is none.")
    if benchmarks:
        from plaudit.evaluation.benchmark_scores import find_benchmark

        for name in benchmarks:
            find_benchmark(name)
    if probes:
        from plaudit.evaluation.probes import select_probes

        select_probes(_names(probes))


def _check_copies(benchmarks: tuple[str, ...], copy: str | None) -> None:
    """Refuse a folder of several benchmarks that lacks one of them, before any is scored."""
    if copy is None or len(benchmarks) < 2:
        return
    if missing := [name for name in benchmarks if not Path(copy, name).exists()]:
        raise ConfigError(
            f"--data {copy}: expected a folder or file in it for each benchmark; {missing[0]!r} is missing."
        )


def _check_gold(data: tuple[str, ...], benchmarks: tuple[str, ...], data_options: dict[str, Any]) -> None:
    """Refuse data without gold scores, before a model scores them."""
    from plaudit.evaluation.benchmarks import BENCHMARKS
    from plaudit.evaluation.evaluate import load_rows

    without = [name for name in benchmarks if BENCHMARKS[name].gold_column is None]
    for path in data:
        columns = getattr(load_rows(path, **data_options)[0], "column_names", None)
        if columns is not None and "scores" not in columns:
            without.append(path)
    if without:
        raise ConfigError(f"--best_of_n: expected ranked groups with `scores` in {without[0]}, got none.")


def _score_files(scores: str | None, sources: list[str]) -> list[Path | None]:
    """Return the score file of each dataset: the one that is named, or in a folder one named after each dataset."""
    if scores is None:
        return [None] * len(sources)
    if len(sources) == 1 and not Path(scores).is_dir():
        check_output("--scores", scores)
        return [Path(scores)]
    folder = Path(scores)
    if folder.is_file() or folder.name.endswith((".jsonl", ".gz")):
        raise ConfigError(f"--scores {scores}: expected a folder, in which each of {len(sources)} datasets has a file.")
    names = [Path(source).name.split(".")[0] for source in sources]
    if len(set(names)) < len(names):
        raise ConfigError(f"--scores {scores}: two of the datasets have the same name. Evaluate them one by one.")
    check_output("--scores", str(folder / "scores.jsonl") if folder.is_dir() else str(folder))
    folder.mkdir(exist_ok=True)
    return [folder / f"{name}.jsonl" for name in names]


def _evaluations(
    reward_model: "BaseRewardModel",
    data: tuple[str, ...],
    benchmarks: tuple[str, ...],
    copy: str | None,
    data_options: dict[str, Any],
    probes: tuple[str, ...],
    files: list[Path | None],
) -> Iterator[tuple["Evaluation", Any]]:
    """Evaluate the model on each dataset and each benchmark, and write the score files."""
    from plaudit.evaluation import evaluate as evaluation
    from plaudit.evaluation.benchmark_scores import score_benchmark
    from plaudit.evaluation.score_files import write_scores

    for number, (source, file) in enumerate(zip([*data, *benchmarks], files, strict=True)):
        if number >= len(data):
            place = Path(copy, source) if copy is not None and len(benchmarks) > 1 else copy
            found = evaluation.evaluate_scores(score_benchmark(reward_model, source, place))
        else:
            found = evaluation.evaluate(reward_model, source, **data_options)
        if file is not None:
            write_scores(file, found.scores)
        yield found, _probe(reward_model, source, data_options, probes) if probes else None


def _open_model(model: str, options: dict[str, Any]) -> "BaseRewardModel":
    with display.while_importing():
        from plaudit.scoring.remote_model import RemoteRewardModel
        from plaudit.scoring.reward_model import RewardModel
        from plaudit.scoring.server_connection import is_server_url

        display.show_log_messages()
    if is_server_url(model):
        return RemoteRewardModel(model, **options_of_server(model, options))
    return RewardModel.from_pretrained(model, **options)


def _probe(reward_model: "BaseRewardModel", source: str, data_options: dict[str, Any], probes: tuple[str, ...]) -> Any:
    from plaudit.evaluation.evaluate import load_rows
    from plaudit.evaluation.probes import run_probes

    rows, _ = load_rows(source, **data_options)
    return run_probes(reward_model, rows, _names(probes))


def _names(probes: tuple[str, ...]) -> str | list[str]:
    names = [name for text in probes for name in text.replace(",", " ").split()]
    return "all" if names == ["all"] else names


def _read_scores(path: str, dataset: str | None, data_options: dict[str, Any]) -> tuple["Evaluation", None]:
    from plaudit.evaluation.evaluate import evaluate_scores, join_dataset
    from plaudit.evaluation.score_files import read_scores

    if dataset is not None:
        display.show_log_messages()
        return evaluate_scores(join_dataset(path, dataset, **data_options)), None
    if any(data_options.values()):
        raise ConfigError("--split, --dataset_config and --dataset_format belong to a dataset: name it with --data.")
    scores = read_scores(path)
    if "format" not in scores.header:
        evaluation_tables.show_no_header()
    return evaluate_scores(scores), None


def _best_of_n(evaluation: "Evaluation", aggregate: str, k: float) -> dict[str, Any]:
    from plaudit.evaluation.best_of_n import best_of_n

    rewards = evaluation.scores.aggregate(aggregate, k)
    groups = [(row, each) for row, each in zip(evaluation.scores.rows, rewards, strict=True) if row.gold is not None]
    if not groups:
        raise ConfigError(f"--best_of_n: expected ranked groups with `scores` in {evaluation.dataset}, got none.")
    curve = best_of_n(
        [each for _, each in groups], [row.gold or [] for row, _ in groups], [row.prompt for row, _ in groups]
    )
    evaluation_tables.show_best_of_n(curve, aggregate, k)
    return curve.to_dict()


def _save_temperature(model: str, evaluation: "Evaluation") -> None:
    from plaudit.evaluation.saved_temperature import save_temperature

    saved = save_temperature(model, evaluation)
    high = "infinity" if saved["high"] is None else f"{saved['high']:.3g}"
    interval = f"95% interval {saved['low']:.3g} to {high}"
    display.console.print(
        f"Wrote the temperature {saved['temperature']:.3g} ({interval}) into {escape(model)}/reward.json; "
        "`calibrated=True` uses it.", soft_wrap=True,
    )  # fmt: skip
