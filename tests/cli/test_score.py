"""`plaudit score` from its options to its files and messages; what runs a job is tested in tests/scoring."""

import io
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from rich.console import Console
from row_files import read, write
from stub_server import StubServer

from plaudit import RewardModel
from plaudit.cli import cli
from plaudit.cli.score import WorkerRange
from plaudit.errors import PlauditError
from plaudit.scoring.worker import Worker

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "score_kills.py"
EVERY_KIND = [
    {"text": "Is the sky blue? Yes."},
    {"messages": [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "No."}]},
    {"prompt": "Is the dog?", "completion": " Yes, the dog.", "source": "a"},
    {
        "prompt": [{"role": "user", "content": "Is it?"}],
        "completion": [{"role": "assistant", "content": "Yes."}],
        "tools": [{"name": "add"}],
    },
    {"prompt": "Is the fox?", "chosen": " Yes.", "rejected": " No, it is green."},
    {"chosen": "Two plus two? Four.", "rejected": "Two plus two? Five."},
    {"prompt": "Is it?", "completions": [" Yes.", " No.", " Thank you."], "ranks": [0, 2, 1]},
    {"completions": ["Is it? Yes, the sky."]},
]


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    monkeypatch.setattr("plaudit.cli.display.show_log_messages", lambda: None)  # it takes over the root logger


@pytest.fixture
def model(make_model, tokenizer, tmp_path):
    model = make_model(pad_token_id=tokenizer.pad_token_id)
    model.config.mean, model.config.std = 1.5, 0.25
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def started(model, tmp_path):
    """Run the command on rows, or on a file; click's result."""

    def run(source, *options, output="out.jsonl"):
        if isinstance(source, list):
            source = write(tmp_path / "in.jsonl", source)
        arguments = [source, "--model", model, "--output", tmp_path / output, "--device", "cpu", *options]
        return CliRunner().invoke(cli, ["score", *map(str, arguments)])

    return run


@pytest.fixture
def score(started):
    """Run the command to its end; what it printed."""

    def run(source, *options, output="out.jsonl"):
        result = started(source, *options, output=output)
        assert result.exit_code == 0, result.exception or result.output
        return " ".join(result.output.split())

    return run


@pytest.fixture
def refused(started):
    """Run the command; the error that it ends with."""

    def run(source, *options, output="out.jsonl"):
        result = started(source, *options, output=output)
        assert result.exit_code != 0
        assert isinstance(result.exception, (PlauditError, SystemExit))
        return " ".join(f"{result.exception} {result.output}".split())

    return run


def texts(count, **more):
    return [{"text": f"Is it {number}? " + "Yes, the sky. " * (number % 5), **more} for number in range(count)]


def close(rewards):
    return pytest.approx(rewards, abs=3e-6)  # float32, in other company


# What is scored, and what comes out


def test_each_kind_of_row_keeps_its_columns_and_gets_its_rewards(score, model, tmp_path):
    assert f"Scored 8 rows of 191 tokens into {tmp_path}/out.jsonl" in score(EVERY_KIND)
    rows = read(tmp_path / "out.jsonl")
    rewards = [{name: row.pop(name) for name in list(row) if name.endswith("reward")} for row in rows]
    assert rows == EVERY_KIND
    chat = EVERY_KIND[3]["prompt"] + EVERY_KIND[3]["completion"]
    expected = RewardModel.from_pretrained(model, device="cpu").score(
        [
            "Is the sky blue? Yes.", EVERY_KIND[1]["messages"], "Is the dog? Yes, the dog.", chat,
            "Is the fox? Yes.", "Is the fox? No, it is green.", "Two plus two? Four.", "Two plus two? Five.",
            "Is it? Yes.", "Is it? No.", "Is it? Thank you.", "Is it? Yes, the sky.",
        ],
        options=[{}] * 3 + [{"tools": [{"name": "add"}]}] + [{}] * 8,
    ).tolist()  # fmt: skip
    assert len(set(np.round(expected, 4))) == 12
    assert rewards == [
        *({"reward": close(reward)} for reward in expected[:4]),
        {"chosen_reward": close(expected[4]), "rejected_reward": close(expected[5])},
        {"chosen_reward": close(expected[6]), "rejected_reward": close(expected[7])},
        {"reward": close(expected[8:11])},
        {"reward": close(expected[11:])},
    ]


def test_the_best_of_a_group_takes_its_place(score, tmp_path):
    group = {"id": 7, "prompt": "Is it?", "completions": [" Yes.", " No, it is green.", " Yes.", " Thank you."]}
    score([group])
    rewards = read(tmp_path / "out.jsonl")[0]["reward"]
    best = int(np.argmax(rewards))
    score([group], "--best_of", output="best.jsonl")
    expected = {"id": 7, "prompt": "Is it?", "completion": group["completions"][best], "reward": rewards[best]}
    assert read(tmp_path / "best.jsonl") == [expected]
    assert list(read(tmp_path / "best.jsonl")[0]) == list(expected)


def test_options_choose_what_is_scored_and_how_it_is_written(score, refused, tmp_path):
    row = {"text": "Is it? Yes.", "prompt": "Is it?", "completion": " No.", "reward": 1.0}
    assert "Choose with --kind completion" in refused([row])
    assert "has a column 'reward' already" in refused([row], "--kind", "text", "--on_error", "skip")
    score([row], "--kind", "text", "--reward_column", "r")
    score([{"text": "Is it? Yes."}], "--normalize", output="normal.jsonl")
    assert read(tmp_path / "out.jsonl")[0].keys() == {*row, "r"}
    raw, normal = read(tmp_path / "out.jsonl")[0]["r"], read(tmp_path / "normal.jsonl")[0]["reward"]
    assert normal == close((raw - 1.5) / 0.25)


@pytest.mark.parametrize("output", ["out.jsonl.gz", "out.csv", "out.parquet"])
def test_each_format_is_chosen_by_its_suffix(score, tmp_path, output):
    pq.write_table(pa.Table.from_pylist(texts(5, n=1)), tmp_path / "in.parquet")
    score(tmp_path / "in.parquet", "--batch_rows", 2, output=output)
    score(tmp_path / output, "--kind", "text", "--reward_column", "again")
    rows = read(tmp_path / "out.jsonl")
    assert [row["text"] for row in rows] == [row["text"] for row in texts(5)]
    assert [float(row["reward"]) for row in rows] == [close(row["again"]) for row in rows]
    assert not list(tmp_path.glob("_*"))


def test_an_ensemble_gives_deviations_and_conservative_rewards(score, ensemble_folder, tmp_path):
    rows = [{"text": "Is the sky blue? Yes."}, {"text": "Two plus two? Five."}]
    options = ("--model", ensemble_folder, "--aggregate", "mean-std", "--k", "0.5")
    score(rows, *options)
    written = read(tmp_path / "out.jsonl")
    model = RewardModel.from_pretrained(ensemble_folder, device="cpu")
    rewards, stds = model.score([row["text"] for row in rows], aggregate="mean-std", k=0.5, return_std=True)
    assert [row["reward"] for row in written] == close(rewards)
    assert [row["reward_std"] for row in written] == close(stds)


def test_a_conservative_reward_needs_an_ensemble_and_a_job_keeps_to_its_aggregate(
    score, refused, ensemble_folder, tmp_path
):
    assert "is a single model" in refused(texts(4), "--aggregate", "min", output="other.jsonl")
    assert "standard deviations of the rewards already" in refused(texts(4), "--aggregate", "min", "--normalize")
    options = ("--model", ensemble_folder, "--batch_rows", "2")
    stopped = [*texts(4), {"text": ""}]
    refused(stopped, *options, "--aggregate", "min", output="careful.jsonl")
    assert "aggregate was min, is None" in refused(stopped, *options, output="careful.jsonl")
    score(texts(4))
    assert "reward_std" not in read(tmp_path / "out.jsonl")[0]


def test_a_server_gives_the_deviations_of_its_ensemble(score, ensemble_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    group = {"prompt": "Is it?", "completions": [" Yes.", " No."]}
    options = ("--aggregate", "mean-std")
    score([*texts(4), group], "--model", ensemble_folder, *options)
    with StubServer(RewardModel.from_pretrained(ensemble_folder)) as server:
        arguments = [tmp_path / "in.jsonl", "--model", server.url, "--output", tmp_path / "remote.jsonl", *options]
        result = CliRunner().invoke(cli, ["score", *map(str, arguments)])
        assert result.exit_code == 0, result.exception
    for there, here in zip(read(tmp_path / "remote.jsonl"), read(tmp_path / "out.jsonl"), strict=True):
        assert list(there) == list(here)
        assert [there[name] for name in ("reward", "reward_std")] == [close(here["reward"]), close(here["reward_std"])]


def test_a_folder_is_read_by_split(score, refused, tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.jsonl", texts(2, of="train"))
    write(tmp_path / "data" / "test.jsonl", texts(3, of="test"))
    score(tmp_path / "data", "--split", "test")
    assert [row["of"] for row in read(tmp_path / "out.jsonl")] == ["test"] * 3
    write(tmp_path / "data" / "test.jsonl", texts(3, other="test"))
    assert "cannot read" in refused(tmp_path / "data", "--split", "test", output="a.jsonl")
    assert "expected a split 'dev'" in refused(tmp_path / "data", "--split", "dev", output="b.jsonl")


def test_what_cannot_be_read_or_written_is_said_before_the_model_is_loaded(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(Worker, "__init__", lambda *_: pytest.fail("the model was loaded"))
    assert "expected a name that ends in .jsonl" in refused(texts(1), output="out.txt")
    assert "there is no folder" in refused(texts(1), output="missing/out.csv")
    assert "is a file: it has no --dataset_config" in refused(texts(1), "--split", "dev")


def test_no_rows_is_an_error(refused):
    assert "expected rows" in refused([])


# Bad rows


def test_bad_rows_stop_the_run_or_are_written_beside_the_output(score, refused, tmp_path):
    long = "Is it? " + "Yes. " * 200
    bad = {1: '{"text": "half a', 4: {"text": ""}, 5: {"text": long}}
    rows = [*texts(1), bad[1], *texts(2), bad[4], bad[5], *texts(3)]
    options = ("--overlong", "error", "--batch_rows", 1)
    said = refused(rows, *options)
    assert said.startswith("row 1: line 2 is not valid JSON")
    assert "The same command with --on_error skip (and without --restart) writes such rows to" in said
    assert "goes on after the 1 rows that are scored" in said
    said = score(rows, *options, "--on_error", "skip")
    assert "Going on after 1 rows that an earlier start has scored" in said
    assert "Scored 6 rows" in said
    assert f"3 rows could not be scored: the reasons are in {tmp_path}/out.jsonl.rejected.jsonl" in said
    rejected = read(tmp_path / "out.jsonl.rejected.jsonl")
    assert {row["row"]: row["content"] for row in rejected} == bad
    assert "row 5, column 'text' has 806 tokens, more than 256" in rejected[-1]["reason"]
    score([row for row in rows if row not in bad.values()], *options, output="good.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "good.jsonl").read_bytes()


def test_sequences_that_are_truncated_are_counted(score):
    rows = [{"text": "Is it? " + "Yes. " * 200}, *texts(2)]
    assert "1 sequences had more than the model has positions and were truncated from the left" in score(rows)
    said = score(rows, "--max_length", 12, output="short.jsonl")
    assert "2 sequences had more than 12 tokens and were truncated from the left" in said


# Progress


def test_progress_is_told_within_a_chunk(score, tmp_path, monkeypatch):
    lines, now = [], iter(range(0, 10_000, 11))  # each look at the clock is eleven seconds later
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    monkeypatch.setattr("plaudit.cli.display.console.print", lambda text, **_: lines.append(text))
    pq.write_table(pa.Table.from_pylist(texts(30)), tmp_path / "in.parquet")
    score(tmp_path / "in.parquet", "--batch_rows", 20, "--max_tokens_per_batch", 64)
    told = [line for line in lines if "rows/s" in line]
    rows, shares = ([int(line.split("%")[place].split()[0]) for line in told] for place in (1, 0))
    assert shares == pytest.approx([number * 100 / 30 for number in rows], abs=4)
    assert rows == sorted(rows)
    assert rows[-1] == 30
    assert sum(number < 20 for number in rows) > 2
    assert "tokens/s" not in told[0]
    assert "tokens/s" in told[-1]


@pytest.mark.parametrize("fails", [False, True])
def test_a_terminal_shows_a_bar_and_is_put_right_again(started, monkeypatch, fails):
    screen = Console(force_terminal=True, file=io.StringIO(), width=120)
    monkeypatch.setattr("plaudit.cli.display.console", screen)
    rows = [*texts(9), "{", *texts(9)]
    assert started(rows, "--batch_rows", 5, *([] if fails else ["--on_error", "skip"])).exit_code == fails
    shown = screen.file.getvalue()
    assert " rows/s " in shown
    assert " tokens/s" in shown
    assert ("1 rejected" in shown) == (not fails)
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor, hidden and shown again
    if not fails:
        assert "0:00:00" in shown  # nothing remains


# Stopping


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_run_with_their_own_code_and_say_how_to_go_on(started, score, tmp_path, monkeypatch, sent, code):
    plain, before = Worker.score, signal.getsignal(signal.SIGTERM)

    def interrupted(worker, chunk, on_batch):
        if chunk.number == 1:
            signal.raise_signal(sent)
        return plain(worker, chunk, on_batch)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "score", interrupted)
        result = started(texts(5), "--batch_rows", 3)
    assert result.exit_code == code
    assert "Stopped after 3 rows. The same command (without --restart) goes on." in result.output
    assert signal.getsignal(signal.SIGTERM) is before
    assert "Going on after 3 rows that an earlier start has scored" in score(texts(5), "--batch_rows", 3)
    assert len(read(tmp_path / "out.jsonl")) == 5


def test_the_command_runs_in_a_thread_that_may_not_set_signal_handlers(score):
    with ThreadPoolExecutor(1) as pool:
        assert "Scored 2 rows" in pool.submit(score, texts(2)).result()


def test_what_failed_before_any_row_was_scored_may_be_mended(score, refused, model, tmp_path):
    assert "modle" in refused(texts(3), "--model", model.with_name("modle"))
    assert not list(tmp_path.glob("_*"))
    score(texts(3), "--model", model)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_been_left_alone(tmp_path):
    done = subprocess.run(
        [sys.executable, BENCHMARK, "--rows", "2500", "--kills", "3", "--folder", tmp_path],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count("of those again: 0") == 4
    assert done.stdout.count("the same bytes") == 2


# Behind a server


@pytest.fixture
def server(model, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PLAUDIT_API_KEY", "secret")
    with StubServer(RewardModel.from_pretrained(model, device="cpu"), key="secret") as stub:
        yield stub


@pytest.fixture
def remotely(server, tmp_path):
    """Run the command with the model behind the server; its exit code, and what it printed or ended with."""

    def run(rows, *options, output="remote.jsonl"):
        source = write(tmp_path / "in.jsonl", rows)
        arguments = [source, "--model", server.url, "--output", tmp_path / output, *options]
        result = CliRunner().invoke(cli, ["score", *map(str, arguments)])
        said = result.output if result.exit_code == 0 else f"{result.exception} {result.output}"
        return result.exit_code, " ".join(said.split())

    return run


def test_a_server_gives_the_rewards_of_its_model(remotely, score, server, tmp_path):
    code, said = remotely(EVERY_KIND, "--normalize")
    assert code == 0, said
    assert f"Scored 8 rows of 191 tokens into {tmp_path}/remote.jsonl" in said
    score(EVERY_KIND, "--normalize")
    for there, here in zip(read(tmp_path / "remote.jsonl"), read(tmp_path / "out.jsonl"), strict=True):
        assert list(there) == list(here)
        for name in here:
            assert there[name] == (close(here[name]) if name.endswith("reward") else here[name])
    assert len(server.bodies) == 2  # of which one with tools


def test_a_server_has_bad_rows_set_aside_as_a_model_does(remotely, score, tmp_path):
    long = {"text": "Is it? " + "Yes. " * 200}
    rows = [*texts(3), {"text": ""}, long, *texts(2), long]
    code, said = remotely(rows, "--overlong", "error", "--batch_rows", 5)
    assert code != 0
    assert said.startswith("row 3, column 'text': expected some text")
    code, said = remotely(rows, "--overlong", "error", "--batch_rows", 5, "--on_error", "skip")
    assert code == 0, said
    assert "Scored 5 rows" in said
    assert "3 rows could not be scored" in said
    score(rows, "--overlong", "error", "--batch_rows", 5, "--on_error", "skip")
    there, here = (read(tmp_path / f"{name}.jsonl.rejected.jsonl") for name in ("remote", "out"))
    assert [(each["row"], each["content"]) for each in there] == [(each["row"], each["content"]) for each in here]
    assert "row 4, column 'text' has 806 tokens, more than 256" in there[1]["reason"]


def test_a_row_on_which_the_served_model_fails_is_a_bad_row(remotely, server, tmp_path):
    fault = 500, {}, '{"error": {"type": "model_fault", "message": "not finite", "param": null}}'
    server.answers = [fault, fault]  # of both rows, then of the first alone
    code, said = remotely(texts(2), "--on_error", "skip")
    assert code == 0, said
    (rejected,) = read(tmp_path / "remote.jsonl.rejected.jsonl")
    assert rejected["reason"] == f"row 0: {server.url}: not finite"
    assert [row["text"] for row in read(tmp_path / "remote.jsonl")] == [texts(2)[1]["text"]]


def test_a_run_goes_on_with_the_same_weights_only(remotely, server, tmp_path):
    rows = texts(6)
    server.versions = ["v1", "v2"]
    code, said = remotely(rows, "--batch_rows", 2)
    assert code != 0
    assert f"the weights at {server.url} were v1, and are v2 now" in said
    server.info["weight_version"] = "v2"
    code, said = remotely(rows, "--batch_rows", 2)
    assert code != 0
    assert "model: weight_version was v1, is v2" in said
    server.info["weight_version"], server.versions = "v1", ["v1"]
    code, said = remotely(rows, "--batch_rows", 2)
    assert code == 0, said
    assert "Going on after 2 rows that an earlier start has scored" in said
    assert len(read(tmp_path / "remote.jsonl")) == 6


@pytest.mark.parametrize(
    "option",
    [("--device", "cpu"), ("--threads", "2"), ("--dtype", "float32"), ("--max_length", "9"), ("--engine", "ray")],
)
def test_options_of_a_model_in_this_process_are_refused_with_a_server(remotely, server, option):
    code, said = remotely(texts(1), *option)
    assert code != 0
    assert f"{option[0]}: the model runs at {server.url}. Give this option to the `plaudit serve` there." in said


def test_a_server_that_is_not_there_ends_the_run(remotely, server, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    server.__exit__()
    code, said = remotely(texts(1))
    assert code != 0
    assert f"cannot reach {server.url}" in said


# Workers


@pytest.mark.parametrize(
    ("text", "workers"), [("1", (1, 1)), ("4", (4, 4)), ("2:", (2, None)), ("2:8", (2, 8)), ("3:3", (3, 3))]
)
def test_workers_are_a_number_or_a_range(text, workers):
    assert WorkerRange().convert(text, None, None) == workers


@pytest.mark.parametrize("text", ["0", "0:4", "4:3", ":4", "", "two", "1:2:3", "-1"])
def test_workers_that_cannot_be_are_refused(refused, text):
    said = refused(texts(1), f"--workers={text}")
    assert f"'--workers': expected a number such as 4, or a range such as 1:8, got {text!r}." in said


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is here")
def test_ray_that_is_missing_is_named_with_the_command_that_installs_it(refused):
    assert "pip install 'plaudit[ray]'" in refused(texts(1), "--engine", "ray")
