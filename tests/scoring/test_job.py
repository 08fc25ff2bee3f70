"""What a job keeps when it is stopped, what it notices when it goes on, and what it reports; mostly without a model."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from row_files import read, write

from plaudit.data.reader import Source, Unreadable
from plaudit.errors import CheckpointError, ConfigError, DataError, ModelError
from plaudit.scoring.chunk_store import Counts
from plaudit.scoring.job import Executor, score_file
from plaudit.scoring.worker import ScoredChunk, ScoringConfig

OUTPUTS = ["out.jsonl", "out.jsonl.gz", "out.csv", "out.parquet"]


class LengthExecutor(Executor):
    """Rewards each text with its length, in this process. It notes the chunks that it scores, and stops at one."""

    def __init__(self):
        self.scored, self.stop_at, self.meanwhile, self.configs = [], None, lambda: None, []

    def default_device(self):
        return "cuda:7"

    def score(self, config, source, done, on_batch):
        self.configs.append(config)
        return self.chunks(config, source, done)

    def chunks(self, config, source, done):
        for chunk in source.chunks(config.chunk_rows, done):
            if chunk.number == self.stop_at:
                raise KeyboardInterrupt
            self.scored.append(chunk.number)
            self.meanwhile()
            rows, rejected = [], []
            for number, row in enumerate(chunk.rows, chunk.first):
                if isinstance(row, Unreadable):
                    rejected.append({"row": number, "reason": f"row {number}: {row.reason}", "content": row.content})
                else:
                    rows.append(row | {"reward": float(len(row["text"]))})
            yield ScoredChunk(chunk.number, rows, rejected, 10, 1, chunk.fraction_read, f"worker {chunk.number % 2}")


@pytest.fixture
def executor():
    return LengthExecutor()


@pytest.fixture
def model(tmp_path):
    """A folder that stands for a model."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


@pytest.fixture
def score(executor, model, tmp_path):
    """Score rows into a file, in chunks of three; the final progress."""

    def run(rows, output="out.jsonl", *, restart=False, report=lambda _: None, **options):
        config = ScoringConfig(str(model), **{"chunk_rows": 3, "threads": 1, "device": "cpu"} | options)
        path = rows if isinstance(rows, Path) else write(tmp_path / "in.jsonl", rows)
        return score_file(
            Source(str(path)), tmp_path / output, config, executor=executor, restart=restart, report=report
        )

    return run


@pytest.fixture
def stop(score, executor):
    """Start a job, and stop it at a chunk."""

    def run(number, rows, output="out.jsonl", **options):
        executor.stop_at = number
        with pytest.raises(KeyboardInterrupt):
            score(rows, output, **options)
        executor.stop_at = None
        executor.scored.clear()

    return run


def texts(count):
    return [{"text": "Yes. " * number} for number in range(1, count + 1)]


# Stopping and going on


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_job_that_was_stopped_goes_on_to_the_same_bytes(score, stop, executor, tmp_path, output):
    rows = [*texts(10), "{", *texts(7)]
    score(rows, "whole-" + output, skip_bad_rows=True)
    assert executor.scored == [0, 1, 2, 3, 4, 5]
    stop(4, rows, output, skip_bad_rows=True)
    score(rows, output, skip_bad_rows=True)
    assert executor.scored == [4, 5]
    for suffix in ("", ".rejected.jsonl"):
        assert (tmp_path / (output + suffix)).read_bytes() == (tmp_path / f"whole-{output}{suffix}").read_bytes()
    assert not list(tmp_path.glob("_*"))


def test_skipping_can_be_asked_for_at_the_row_that_is_bad(score, executor, tmp_path):
    rows = [*texts(7), "{", *texts(4)]
    with pytest.raises(DataError) as raised:
        score(rows)
    reason, advice = str(raised.value).split("\n")
    assert reason.startswith("row 7: line 8 is not valid JSON")
    assert advice == (
        f"The same command with --on_error skip (and without --restart) writes such rows to "
        f"'{tmp_path}/out.jsonl.rejected.jsonl' and goes on after the 6 rows that are scored."
    )
    assert not (tmp_path / "out.jsonl").exists()
    # No reward depends on the trust in a model's code.
    score(rows, skip_bad_rows=True, model_options={"trust_remote_code": True})
    assert executor.scored == [0, 1, 2, 2, 3]
    assert len(read(tmp_path / "out.jsonl")) == 11


def test_what_ends_a_job_after_its_output_is_there_costs_nothing(score, executor, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("plaudit.scoring.chunk_store.remove_folder", lambda _: None)  # as if killed just before
        score(texts(5))
    assert (tmp_path / "_scoring-out.jsonl").is_dir()
    before = (tmp_path / "out.jsonl").read_bytes()
    score(texts(5))
    assert executor.scored == [0, 1]
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert not list(tmp_path.glob("_*"))


def test_device_and_threads_are_taken_from_the_start_before(score, stop, executor):
    stop(2, texts(8), threads=3, device=None)
    assert executor.configs[-1].device == executor.default_device()
    executor.default_device = lambda: "another"
    score(texts(8), threads=None, device=None)
    assert (executor.configs[-1].threads, executor.configs[-1].device) == (3, "cuda:7")
    assert executor.scored == [2]


def test_a_first_start_takes_the_threads_of_torch(score, executor):
    score(texts(2), threads=None)
    assert executor.configs[-1].threads == torch.get_num_threads()


CHANGES = {
    "input: bytes was": lambda data, model: write(data, texts(9)) and {},
    "input: files was": lambda data, model: os.utime(data, (1, 1)) or {},  # as long as before
    "model: files was": lambda data, model: os.utime(model / "config.json", (1, 1)) or {},
    "options: max_length was None, is 9": lambda data, model: {"model_options": {"max_length": 9}},
    "options: batch_rows was 3, is 4": lambda data, model: {"chunk_rows": 4},
    "options: normalize was False, is True": lambda data, model: {"normalize": True},
    "options: threads was 1, is 2": lambda data, model: {"threads": 2},
    "options: device was cpu, is cuda": lambda data, model: {"device": "cuda"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_job_does_not_go_on_with_something_else(score, stop, executor, model, tmp_path, change):
    data = write(tmp_path / "data.jsonl", texts(8))
    stop(1, data)
    options = CHANGES[change](data, model)
    with pytest.raises(ConfigError, match=f"from something else: .*{change}.*or give --restart"):
        score(data, **options)
    assert executor.scored == []
    score(data, **options, restart=True)
    assert executor.scored[0] == 0


def test_an_input_that_changes_on_the_way_is_noticed(score, executor, tmp_path):
    data = write(tmp_path / "data.jsonl", texts(3))

    def append():
        with open(data, "a") as file:
            file.write("\n")

    executor.meanwhile = append
    with pytest.raises(ConfigError, match="input: bytes was"):
        score(data)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_path_may_be_written_in_another_way(score, stop, executor, tmp_path, monkeypatch):
    stop(1, texts(5))
    monkeypatch.chdir(tmp_path)
    score(Path("in.jsonl"))
    assert executor.scored == [1]


def test_an_output_that_exists_is_replaced_only_after_a_restart_that_succeeds(score, executor, tmp_path):
    score(texts(2))
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        score(texts(3))
    executor.stop_at = 0
    with pytest.raises(KeyboardInterrupt):
        score(texts(3), restart=True)
    (tmp_path / "_scoring-out.jsonl").mkdir()  # as if killed
    executor.stop_at = None
    with pytest.raises(ConfigError, match="exists already"):
        score(texts(3))
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert not list(tmp_path.glob("_*"))
    score(texts(3), restart=True)
    assert len(read(tmp_path / "out.jsonl")) == 3


def test_an_output_in_the_input_is_refused(score, tmp_path):
    data = write(tmp_path / "data.jsonl", texts(2))
    before = data.read_bytes()
    for output in ("data.jsonl", f"../{tmp_path.name}/data.jsonl"):
        with pytest.raises(ConfigError, match="lies in INPUT"):
            score(data, output, restart=True)
    assert data.read_bytes() == before
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "data.jsonl", texts(2))
    with pytest.raises(ConfigError, match="lies in INPUT"):
        score(tmp_path / "folder", "folder/out.jsonl")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["data.jsonl"]


def test_a_full_disk_is_said_and_gone_on_from(score, executor, monkeypatch):
    def full_after_the_first_chunk(*_):
        if len(executor.scored) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full_after_the_first_chunk)
        with pytest.raises(CheckpointError, match="The same command .without --restart. goes on after the 3 rows"):
            score(texts(8))
    score(texts(8))
    assert executor.scored == [0, 1, 1, 2]


# What is reported


def test_progress_counts_what_earlier_starts_have_scored(score, stop, executor):
    rows = [*texts(7), "{", *texts(4)]
    stop(1, rows, skip_bad_rows=True)
    reported = []
    last = score(rows, skip_bad_rows=True, report=reported.append)
    assert reported[-1] == last
    assert [each.counts.rows for each in reported] == [3, 3, 6, 8, 11]
    assert [each.rows for each in reported] == [3, 3, 6, 8, 11]
    assert last.counts == Counts(rows=11, rejected=1, tokens=40, truncated=4)
    assert reported[0].fraction is None
    assert last.fraction == 1
    assert [each.workers for each in reported] == [0, 0, 1, 2, 2]


def test_progress_is_reported_within_a_chunk(score, executor, tmp_path):
    def chunks(config, source, done, on_batch):
        for chunk in source.chunks(config.chunk_rows, done):
            on_batch(chunk, 0.5)
            yield ScoredChunk(chunk.number, [{"reward": 0.5} for _ in chunk.rows], [], 10, 0, chunk.fraction_read)

    executor.score, reported = chunks, []
    (tmp_path / "data").mkdir()
    rows = 8 * texts(1)
    for data, known in ((write(tmp_path / "in.jsonl", rows), True), (tmp_path / "data", False)):
        write(tmp_path / "data" / "train.jsonl", rows)
        reported.clear()
        score(data, f"{known}.jsonl", chunk_rows=4, report=reported.append)
        assert [each.rows for each in reported] == [0, 0, 2, 4, 6, 8]
        assert [each.counts.rows for each in reported] == [0, 0, 0, 4, 4, 8]
        fractions = [each.fraction for each in reported[2:]]
        assert fractions == ([0.25, 0.5, 0.75, 1.0] if known else [None] * 4)


# In this process


def test_the_local_executor_scores_as_a_worker_does_and_loads_the_model_at_once(score, model_folder, tmp_path):
    config = ScoringConfig(str(model_folder), "cpu", 1, chunk_rows=3)
    fractions = []
    rows = Source(str(write(tmp_path / "in.jsonl", texts(5))))
    chunks = list(Executor().score(config, rows, frozenset([0]), lambda chunk, done: fractions.append(done)))
    assert [chunk.number for chunk in chunks] == [1]
    assert len(chunks[0].rows) == 2
    assert fractions[-1] == 1
    score_file(rows, tmp_path / "local.jsonl", config)
    assert read(tmp_path / "local.jsonl")[3:] == chunks[0].rows
    shutil.copytree(model_folder, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="model.safetensors"):
        Executor().score(ScoringConfig(str(tmp_path / "broken")), rows, frozenset(), print)


def test_a_job_that_failed_before_any_row_was_scored_leaves_nothing(tmp_path):
    rows = Source(str(write(tmp_path / "in.jsonl", texts(3))))
    with pytest.raises((OSError, ValueError)):
        score_file(rows, tmp_path / "out.jsonl", ScoringConfig(str(tmp_path / "modle")))
    assert not list(tmp_path.glob("_*"))
