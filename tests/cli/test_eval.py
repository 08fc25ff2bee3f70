"""`plaudit eval`: its tables, its file, its options and its exit code."""

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from stub_server import StubServer

from plaudit import RewardModel, cli, evaluate
from plaudit.errors import ConfigError
from plaudit.evaluation.figures import METRICS


@pytest.fixture(autouse=True)
def loaded_models(monkeypatch):
    """The models that are loaded, whose rewards are written in the responses, and a console of 80 columns."""

    class Fixed(RewardModel):
        def __init__(self, truncated):
            self.truncated = truncated

        def score(self, sequences, **_):
            return np.array([float(text.split("=")[1]) for text in sequences], dtype=np.float32)

    def load(path, **options):
        loaded.append((path, options))
        return Fixed(0)

    loaded = []
    monkeypatch.setattr(RewardModel, "from_pretrained", load)
    monkeypatch.setattr("plaudit.cli.display.show_log_messages", lambda: None)  # it takes over the root logger
    monkeypatch.setattr("plaudit.cli.display.console.width", 80, raising=False)
    return loaded


@pytest.fixture
def data(tmp_path):
    """Seven of ten right, in a subset of four where all are; the shorter one is right, but once it is as long."""
    rows = [
        {"prompt": f"Q{n}", "chosen": " =1", "rejected": " = 0" if n else " =0"}
        | {"subset": "easy" if n < 4 else "hard"}
        for n in range(7)
    ]
    rows += [{"prompt": f"Q{n}", "chosen": " =0", "rejected": " = 1", "subset": "hard"} for n in range(7, 10)]
    return write(tmp_path / "pairs.jsonl", rows)


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def run(*arguments):
    result = CliRunner().invoke(cli.cli, ["eval", "model", *arguments], catch_exceptions=False)
    return result.exit_code, result.output


def test_the_tables_show_the_figures_within_80_columns(data):
    code, output = run(data)
    assert code == 0
    assert max(map(len, output.splitlines())) <= 80
    words = " ".join(output.replace("│", " ").split())
    assert "10 in 10 rows of 10 prompts" in words
    assert "accuracy 70.0% (95% interval 39.7% to 89.2%)" in words
    assert "longer wins 5.0%, shorter wins 95.0%" in words
    assert "easy 4 100.0% 51.0-100.0" in words
    assert "hard 6 50.0% 18.8-81.2" in words
    assert "Worse than preferring the shorter response." in words
    assert "left out" not in words
    assert "rank correlation -0.32" in words  # -6 / sqrt(20 * 18): signs of rewards and of lengths, both ways
    assert "Summary" not in words
    assert "(train)" not in output  # what `datasets` calls the rows of any file


def test_names_in_brackets_are_shown_and_a_figure_without_a_value_is_a_dash(tmp_path):
    row = {"prompt": "Q", "chosen": " =1", "rejected": " =0"}
    rows = [row | {"subset": "[b]"}, row | {"prompt": "R", "subset": "c"}]
    code, output = run(write(tmp_path / "pairs.jsonl", rows), "--split", "train[:2]")
    words = " ".join(output.replace("│", " ").split())
    assert code == 0
    assert "pairs.jsonl (train[:2])" in "".join(output.splitlines())
    assert "[b] 1 100.0%" in words
    assert "temperature none: the greater reward is always right" in words
    assert "rank correlation -" in words


@pytest.mark.parametrize(
    ("right", "verdict"), [(20, None), (12, "Not clearly better than preferring the shorter"), (0, "Worse than")]
)
def test_a_model_that_is_not_clearly_better_than_length_has_a_remark(tmp_path, right, verdict):
    """The shorter one is right in 10 of 20 rows, and as long in the others; the model is right in some."""
    rows = [
        {"prompt": f"Q{n}", "chosen": f" ={n < right:d}", "rejected": " =0.5" if n % 2 else "=.5"} for n in range(20)
    ]
    code, output = run(write(tmp_path / "pairs.jsonl", rows))
    assert code == 0
    assert ("than preferring" in output) == (verdict is not None)
    assert (verdict or "") in output


def test_ties_and_equal_responses_are_shown_as_left_out(tmp_path):
    rows = [{"prompt": prompt, "chosen": " =1", "rejected": " =0"} for prompt in "abcd"]
    rows[1]["tie"], rows[2]["rejected"], rows[3]["rejected"] = True, " =1", " =1"
    code, output = run(write(tmp_path / "pairs.jsonl", rows))
    assert code == 0
    assert "1 in 4 rows of 1 prompts; left out: 1 ties, 2 pairs of equal responses" in " ".join(
        output.replace("│", " ").split()
    )


def test_options_reach_the_model_which_is_loaded_once(data, loaded_models):
    run(data, data, "--max_length", "9", "--overlong", "error", "--dtype", "bfloat16", "--device", "cpu")
    ((path, options),) = loaded_models
    assert path == "model"
    assert options == {
        "max_length": 9, "overlong": "error", "max_tokens_per_batch": 4096, "dtype": "bfloat16", "device": "cpu",
        "trust_remote_code": False,
    }  # fmt: skip


def test_options_of_the_data_reach_every_dataset(monkeypatch):
    asked = []

    def stop(model, path, **options):
        asked.append((path, options))
        raise ValueError("enough")

    monkeypatch.setattr("plaudit.evaluation.evaluate.evaluate", stop)
    options = {"split": "dev", "dataset_config": "main", "dataset_format": "hh"}
    with pytest.raises(ValueError, match="enough"):
        run("someone/pairs", *(part for name, value in options.items() for part in (f"--{name}", value)))
    assert asked == [("someone/pairs", options)]


def test_several_datasets_have_a_table_each_and_a_summary(data, tmp_path):
    other = write(tmp_path / "other.jsonl", [{"prompt": "Q", "chosen": " =1", "rejected": " =0"}])
    code, output = run(data, other)
    assert code == 0
    assert max(map(len, output.splitlines())) <= 80
    summary = " ".join(output.split("Summary")[1].split())
    assert "pairs.jsonl 10 70.0%" in summary
    assert "other.jsonl 1 100.0%" in summary
    assert "mean 85.0%" in summary


def test_the_file_holds_everything(data, tmp_path):
    output = tmp_path / "result.json"
    assert run(data, "--output", str(output))[0] == 0
    written = json.loads(output.read_text())
    assert written["model"] == "model"
    assert written["failed"] == []
    assert written["mean"]["accuracy"] == pytest.approx(0.7)
    (dataset,) = written["datasets"]
    assert (dataset["dataset"], dataset["split"], dataset["cut"]) == (data, "train", 0)
    assert list(dataset["overall"]) == list(dataset["subsets"]["easy"]) == list(METRICS)
    assert dataset["subsets"]["easy"]["temperature"] == 0
    assert dataset["subsets"]["hard"]["temperature"] is None
    assert dataset["calibration"][0]["accuracy"] == pytest.approx(0.7)
    assert list(tmp_path.glob(".*")) == []


def test_a_figure_without_a_value_is_null_in_the_file_and_in_the_mean(data, tmp_path):
    undecided = write(tmp_path / "half.jsonl", [{"prompt": "Q", "chosen": " =1", "rejected": " =0", "label": 0.5}])
    assert run(data, undecided, "--output", str(tmp_path / "result.json"))[0] == 0
    written = json.loads((tmp_path / "result.json").read_text())
    assert [each["overall"]["accuracy"] for each in written["datasets"]] == [pytest.approx(0.7), None]
    assert written["mean"]["accuracy"] is None
    assert written["mean"]["log_loss"] > 0


def test_a_file_that_cannot_be_written_leaves_the_one_before(data, tmp_path, monkeypatch):
    output = tmp_path / "result.json"
    output.write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        run(data, "--output", str(output))
    assert output.read_text() == "before"
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize(
    ("bound", "code"),
    [
        (("--fail_under", "accuracy=0.7"), 0),
        (("--fail_under", "accuracy=0.71"), 1),
        (("--fail_over", "log_loss=0.61"), 1),
        (("--fail_over", "log_loss=0.62"), 0),
        (("--fail_under", "accuracy=0.5", "--fail_under", "margin=0.5"), 1),
        (("--fail_over", "temperature=9"), 0),
    ],
)
def test_limits_decide_the_exit_code(data, tmp_path, bound, code):
    output = tmp_path / "result.json"
    assert run(data, *bound, "--output", str(output))[0] == code
    assert bool(json.loads(output.read_text())["failed"]) == bool(code)  # written all the same


def test_a_limit_that_is_not_kept_is_shown_with_its_dataset(data, tmp_path):
    other = write(tmp_path / "other.jsonl", [{"prompt": "Q", "chosen": " =1", "rejected": " =0"}])
    code, output = run(other, data, "--fail_under", "accuracy=0.8")
    assert code == 1
    assert f"FAILED {data}: accuracy is 0.7, under 0.8" in output
    assert f"FAILED {other}" not in output
    assert f"FAILED {data}: log_loss is 0.613262, over 0.5" in run(data, "--fail_over", "log_loss=0.5")[1]


def test_a_figure_that_is_not_defined_fails(tmp_path):
    rows = write(tmp_path / "same.jsonl", [{"prompt": "Q", "chosen": " =1", "rejected": " =0"}])  # equally long
    assert run(rows, "--fail_under", "length_correlation=-1")[0] == 1
    assert run(rows, "--fail_over", "length_correlation=1")[0] == 1


@pytest.mark.parametrize(
    ("option", "bound", "message"),
    [
        ("--fail_under", "acuracy=0.7", "no figure 'acuracy'. Did you mean accuracy\\? There are: rows, prompts,"),
        ("--fail_over", "x=1", "no figure 'x'. There are: rows"),
        ("--fail_under", "accuracy", "accuracy: expected METRIC=VALUE with a number, such as accuracy=0.7"),
        ("--fail_under", "accuracy=high", "expected METRIC=VALUE with a number"),
        ("--fail_under", "accuracy=nan", "expected METRIC=VALUE with a number"),
        ("--fail_under", "accuracy=70", "expected a share from 0 to 1, such as accuracy=0.7 for 70%"),
        ("--output", "missing/result.json", "expected the path of a file in a folder that you may write to"),
        ("--output", ".", "expected the path of a file in a folder that you may write to"),
    ],
)
def test_a_limit_or_a_path_without_use_is_refused_before_loading(data, loaded_models, option, bound, message):
    with pytest.raises(ValueError, match=message):
        run(data, option, bound)
    assert loaded_models == []


def test_a_folder_that_cannot_be_written_to_is_refused_before_loading(data, loaded_models, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ValueError, match="expected the path of a file in a folder that you may write to"):
        run(data, "--output", "result.json")
    assert loaded_models == []


def test_rows_of_token_ids_have_an_error_of_their_own(tmp_path):
    rows = write(tmp_path / "ids.jsonl", [{"chosen_ids": [1, 2], "rejected_ids": [1, 3]}])
    with pytest.raises(ValueError, match="'chosen_ids', 'rejected_ids' may be token ids, which only training takes"):
        run(rows)


def test_the_help_is_shown_without_importing_torch():
    code = """if True:
        import sys
        from plaudit.cli import cli
        cli(["eval", "--help"], standalone_mode=False)
        print(sys.modules.keys() & {"torch", "datasets", "transformers", "plaudit.evaluation"})
    """
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--fail_under" in output
    assert output.endswith("set()\n")


def test_data_must_be_named():
    with pytest.raises(ConfigError, match="expected DATA to evaluate model on"):
        run()


# A model behind a server


def test_a_server_is_evaluated_as_the_model_there(make_model, tokenizer, text_rows, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    scorer, rows = RewardModel(make_model(), tokenizer), write(tmp_path / "pairs.jsonl", text_rows)
    with StubServer(scorer) as server:
        arguments = ["eval", server.url, rows, "--output", str(tmp_path / "out.json")]
        assert CliRunner().invoke(cli.cli, arguments, catch_exceptions=False).exit_code == 0
        (found,) = json.loads((tmp_path / "out.json").read_text())["datasets"]
        with pytest.raises(ConfigError, match=f"--dtype: the model runs at {server.url}"):
            CliRunner().invoke(cli.cli, [*arguments, "--dtype", "float32"], catch_exceptions=False)
    assert found["overall"]["accuracy"] == evaluate(scorer, text_rows).overall["accuracy"]
    assert found["header"]["weight_version"] == "v1"
