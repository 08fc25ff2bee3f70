"""`plaudit eval` with score files, benchmarks, probes, best-of-n curves and a saved temperature."""

import json
import subprocess
import sys

import datasets
import numpy as np
import pytest
from click.testing import CliRunner
from ensemble_data import ensemble_scores

from plaudit import RewardModel, cli
from plaudit.errors import ConfigError, DataError
from plaudit.evaluation.score_files import read_scores, write_scores
from plaudit.evaluation.scores import ScoredRow, Scores


@pytest.fixture(autouse=True)
def loaded_models(monkeypatch):
    """A model whose rewards are written in the responses."""

    class Fixed(RewardModel):
        def __init__(self):
            self.truncated, self.name = 0, "fixed"

        def score(self, sequences, **_):
            return np.array([number_in(each) for each in sequences], dtype=np.float32)

    def load(path, **_):
        loaded.append(path)
        return Fixed()

    loaded = []
    datasets.disable_progress_bars()
    monkeypatch.setattr(RewardModel, "from_pretrained", load)
    monkeypatch.setattr("plaudit.cli.display.show_log_messages", lambda: None)  # it takes over the root logger
    monkeypatch.setattr("plaudit.cli.display.console.width", 80, raising=False)
    return loaded


def number_in(sequence):
    text = sequence if isinstance(sequence, str) else sequence[-1]["content"]
    return float(text.split("=")[1].split()[0]) if "=" in text else 0.0  # a probe may have cut the number off


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture
def data(tmp_path):
    rows = [{"prompt": f"Q{n}", "chosen": f" ={n % 4}", "rejected": " = 1", "id": f"q{n}"} for n in range(40)]
    return write(tmp_path / "pairs.jsonl", rows)


def run(*arguments):
    result = CliRunner().invoke(cli.cli, ["eval", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


# Score files


def test_a_score_file_shows_the_figures_of_its_evaluation_without_a_model(data, tmp_path, loaded_models):
    path = str(tmp_path / "scores.jsonl")
    with_model = run("model", data, "--scores", path)
    assert loaded_models == ["model"]
    assert run("--scores", path) == with_model
    assert loaded_models == ["model"]
    assert read_scores(path).header["model"] == "fixed"


def test_rewards_from_elsewhere_are_evaluated_with_their_dataset(data, tmp_path):
    path = str(tmp_path / "scores.jsonl")
    shown = run("model", data, "--scores", path)
    foreign = [{"id": row.id, "rewards": row.rewards} for row in read_scores(path).rows]
    path = write(tmp_path / "foreign.jsonl", foreign[::-1])
    assert run("--scores", path, "--data", data) == shown
    assert run(data, "--scores", path) == shown


def test_several_datasets_have_a_file_each_in_a_folder(data, tmp_path):
    other = write(tmp_path / "other.jsonl", [{"prompt": "Q", "chosen": " =1", "rejected": " =0"}])
    run("model", data, other, "--scores", str(tmp_path / "folder"))
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["other.jsonl", "pairs.jsonl"]
    with pytest.raises(ConfigError, match="expected a folder, in which each of 2 datasets has a file"):
        run("model", data, other, "--scores", str(tmp_path / "one.jsonl"))


def test_no_score_file_appears_where_a_row_cannot_be_read(tmp_path):
    broken = write(tmp_path / "broken.jsonl", [{"prompt": "Q", "chosen": " =1", "rejected": " =0"}, {"chosen": "a"}])
    with pytest.raises(DataError, match="row 1"):
        run("model", broken, "--scores", str(tmp_path / "scores.jsonl"))
    assert not (tmp_path / "scores.jsonl").exists()


def test_a_score_file_is_evaluated_without_importing_torch(data, tmp_path):
    path = str(tmp_path / "scores.jsonl")
    run("model", data, "--scores", path)
    code = f"""if True:
        import sys
        from plaudit.cli import cli
        try:
            cli(["eval", "--scores", {path!r}], standalone_mode=False)
        except SystemExit:
            print(sys.modules.keys() & {{"torch", "datasets", "transformers"}})
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "accuracy" in done.stdout
    assert done.stdout.endswith("set()\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected MODEL and DATA, or --scores FILE"),
        (["model"], "expected DATA to evaluate model on"),
        (["--benchmark", "llmbar", "--scores", "a.jsonl"], "--benchmark: expected MODEL"),
        (["model", "data", "--data", "copy"], "--data copy: expected --benchmark with it"),
        (["model", "--benchmark", "llmbars"], "there is no benchmark 'llmbars': expected one of rewardbench, "),
        (["--scores", "a.jsonl", "--probes", "all"], "--probes and --save_temperature need MODEL"),
        (["--scores", "a.jsonl", "--split", "test"], "belong to a dataset: name it with --data"),
        (["model", "data", "--probes", "lengths"], "lengths"),
        (["--scores", "a.jsonl", "--aggregate", "min"], "--aggregate and --k: expected --best_of_n with them"),
        (["model", "a", "b", "--save_temperature"], "--save_temperature: expected one dataset"),
        (["org/model", "a", "--save_temperature"], "expected the model's folder, got 'org/model'"),
        (["model", "--benchmark", "llmbar", "--probes", "all"], "not a benchmark"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_a_model_is_loaded(arguments, message, loaded_models):
    with pytest.raises(ConfigError, match=message):
        run(*arguments)
    assert loaded_models == []


# Benchmarks


@pytest.fixture
def judged(tmp_path):
    """A copy of JudgeBench with four pairs, of which a model that prefers `=1` has two right, by one equal reward."""
    sides = [("=1", "=0", "A>B"), ("=1", "=0", "B>A"), ("=1", " =1", "A>B"), (" =1", "=1", "B>A")]
    rows = [
        {"pair_id": str(n), "original_id": str(n), "source": "mmlu-pro-law" if n % 2 else "livebench-math",
         "question": f"Q{n}", "response_A": a, "response_B": b, "label": label}
        for n, (a, b, label) in enumerate(sides)
    ]  # fmt: skip
    return write(tmp_path / "gpt.jsonl", rows)


def test_a_benchmark_shows_its_own_figure_under_its_rule_beside_plaudits(judged, tmp_path):
    scores, output = str(tmp_path / "scores.jsonl"), str(tmp_path / "result.json")
    shown = run("model", "--benchmark", "judgebench", "--data", judged, "--scores", scores, "--output", output)
    assert "judgebench, by its own rule" in shown
    assert "strictly greater" in shown
    (entry,) = json.loads((tmp_path / "result.json").read_text())["datasets"]
    assert entry["official"]["overall"] == 0.5  # equal rewards are right where the label is B>A
    assert entry["overall"]["accuracy"] == 0.5  # equal rewards are one half
    assert entry["overall"]["reward_ties"] == 2
    assert run("--scores", scores) == shown


def test_a_benchmark_that_is_not_there_says_where_it_is_published(tmp_path):
    with pytest.raises(DataError, match=r"github.com/princeton-nlp/LLMBar.*--data"):
        run("model", "--benchmark", "llmbar", "--data", str(tmp_path / "none"))


# Probes, best-of-n and the temperature


def test_probes_are_shown_and_written(tmp_path):
    rows = [{"prompt": f"Q{n}?", "chosen": f" Yes it is. ={n % 3}", "rejected": " No. =1"} for n in range(30)]
    data, output = write(tmp_path / "pairs.jsonl", rows), str(tmp_path / "result.json")
    shown = run("model", data, "--probes", "swap,cut", "--output", output)
    assert "swap" in shown
    (entry,) = json.loads((tmp_path / "result.json").read_text())["datasets"]
    assert entry["probes"][0]["name"] == "swap"


def test_best_of_n_takes_the_scores_of_groups_as_gold(tmp_path):
    rows = [{"prompt": f"Q{n}", "completions": [" =1", " =3", " =2"], "scores": [0.1 * n, 3.0, 2.0]} for n in range(12)]
    data, output = write(tmp_path / "groups.jsonl", rows), str(tmp_path / "result.json")
    shown = run("model", data, "--best_of_n", "--output", output)
    assert "Best of n" in shown
    curve = json.loads((tmp_path / "result.json").read_text())["datasets"][0]["best_of_n"]
    assert (curve["n"], curve["gold"][-1]) == ([1, 2, 3], 3.0)
    with pytest.raises(ConfigError, match="--best_of_n: expected ranked groups with `scores`"):
        run(
            "model",
            write(tmp_path / "pairs.jsonl", [{"prompt": "Q", "chosen": " =1", "rejected": " =0"}]),
            "--best_of_n",
        )


def test_best_of_n_chooses_by_a_conservative_reward_of_an_ensemble(tmp_path):
    header = ensemble_scores("told", 1, members=2).header
    members = [[3.0, 0.0], [1.0, 1.0], [0.0, 0.0]]  # the mean prefers the first response, the minimum the second
    rows = [
        ScoredRow(n, [1.5, 1.0, 0.0], comparisons=[(1, 0)], members=members, gold=[0.0, 1.0, 0.5]) for n in range(12)
    ]
    path, output = str(tmp_path / "groups.jsonl"), str(tmp_path / "result.json")

    def best(*options):
        run("--scores", path, "--best_of_n", "--output", output, *options)
        return json.loads((tmp_path / "result.json").read_text())["datasets"][0]["best_of_n"]["gold"][-1]

    write_scores(path, Scores(header, rows))
    assert best() == 0.0
    assert best("--aggregate", "min") == best("--aggregate", "mean-std", "--k", "1") == 1.0
    assert best("--aggregate", "mean-std", "--k", "0") == 0.0
    write_scores(path, Scores({"model": "single"}, [ScoredRow(0, [1.0, 0.0], gold=[1.0, 0.0])]))
    with pytest.raises(ConfigError, match="aggregate='min': single is a single model"):
        best("--aggregate", "min")


def test_a_conservative_reward_of_a_model_is_checked_before_rows_are_scored(tmp_path, monkeypatch):
    class Single(RewardModel):
        def __init__(self):
            self.truncated, self.name, self.uncertainty = 0, "single", None

    monkeypatch.setattr("plaudit.evaluation.evaluate.evaluate", lambda *_, **__: pytest.fail("rows were scored"))
    monkeypatch.setattr(RewardModel, "from_pretrained", lambda path, **_: Single())
    data = write(tmp_path / "groups.jsonl", [{"prompt": "Q", "completions": [" =1", " =3"], "scores": [1.0, 2.0]}])
    with pytest.raises(ConfigError, match="aggregate='min': single is a single model"):
        run("model", data, "--best_of_n", "--aggregate", "min")


def test_the_uncertainty_of_an_ensemble_has_a_table_and_is_written(tmp_path):
    path, output = str(tmp_path / "scores.jsonl"), str(tmp_path / "result.json")
    write_scores(path, ensemble_scores("follows", 1500))
    shown = run("--scores", path, "--output", output)
    assert "Uncertainty: the spread of 5 members" in shown
    assert "The uncertainty does not earn its place" in shown
    (entry,) = json.loads((tmp_path / "result.json").read_text())["datasets"]
    assert entry["uncertainty"]["earns_its_place"] is False
    assert f"{entry['uncertainty']['adjusted_auroc']:.3f}" in shown
    write_scores(path, ensemble_scores("alike", 12))
    shown = run("--scores", path)
    assert "The members make the same errors: they are one model." in shown
    assert "Cannot tell: fewer than 10 prompts have an error" in shown
    assert "nan" not in shown


def test_the_temperature_is_written_into_the_models_folder(data, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    shown = run(str(model), data, "--save_temperature")
    saved = json.loads((model / "reward.json").read_text())["calibration"]
    assert f"Wrote the temperature {saved['temperature']:.3g}" in shown
    assert saved["dataset"] == data
