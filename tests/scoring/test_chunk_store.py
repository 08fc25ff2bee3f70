"""A run on the disk, without a model: what it keeps, and what it notices."""

import json
import os
from types import SimpleNamespace

import pytest

from plaudit.checkpoint.metadata import write_description
from plaudit.data.reader import Source
from plaudit.errors import CheckpointError, ConfigError
from plaudit.scoring.chunk_store import Run, fingerprint_of_model, fingerprint_of_source
from plaudit.scoring.worker import ScoredBlock


def block(number, rows=(), rejected=()):
    return ScoredBlock(number, [{"n": n} for n in rows], [{"row": n} for n in rejected], 10, 1, None)


def read(path):
    return [next(iter(json.loads(line).values())) for line in path.read_text().splitlines()]


def test_blocks_are_joined_in_the_order_of_their_numbers_whenever_they_came(tmp_path):
    with Run(tmp_path / "out.jsonl") as run:
        for number in (9, 1, 0, 3, 2, 8, 5, 4, 7, 6):
            run.commit(block(number, [2 * number], [2 * number + 1]), None)
        assert (run.counts.rows, run.counts.rejected, run.counts.tokens, run.counts.cut) == (10, 10, 100, 10)
        run.finish()
    assert read(tmp_path / "out.jsonl") == list(range(0, 20, 2))
    assert read(run.rejected) == list(range(1, 20, 2))


def test_a_block_without_a_row_that_can_be_scored_leaves_no_gap(tmp_path):
    with Run(tmp_path / "out.jsonl") as run:
        for each in (block(0, [0]), block(1, (), [1]), block(2, [2])):
            run.commit(each, None)
        run.finish()
    assert read(tmp_path / "out.jsonl") == [0, 2]


def test_a_block_that_is_missing_is_no_short_output(tmp_path):
    with Run(tmp_path / "out.jsonl") as run:
        run.commit(block(0, [0]), None)
        run.commit(block(2, [2]), None)
        with pytest.raises(CheckpointError, match="block 1 is missing. Run once more"):
            run.finish()
    with Run(tmp_path / "out.jsonl") as again:
        assert again.done == {0, 2}
    assert not (tmp_path / "out.jsonl").exists()


def test_the_rejected_rows_of_an_earlier_output_do_not_stay_beside_the_new_one(tmp_path):
    for rejected in ([1], []):
        with Run(tmp_path / "out.jsonl", restart=True) as run:
            run.commit(block(0, [0], rejected), None)
            run.finish()
        assert run.rejected.exists() == bool(rejected)


# What it was made with


@pytest.fixture
def hub(monkeypatch):
    """The commits of repositories; one that is not in it cannot be asked for."""
    commits = {}
    ask = SimpleNamespace(repo_info=lambda name, repo_type: SimpleNamespace(sha=commits[repo_type, name]))
    monkeypatch.setattr("plaudit.scoring.chunk_store.HfApi", lambda: ask)
    return commits


def test_what_is_on_the_hub_is_told_by_its_commit_and_offline_by_its_name(tmp_path, hub):
    def agree():
        with Run(tmp_path / "out.jsonl") as run:
            source = fingerprint_of_source(Source("someone/one", "main", "test"))
            run.agree_on({"input": source, "model": fingerprint_of_model("someone/one"), "options": {}})
            run.commit(block(0, [0]), None)

    def change(**commits):
        hub.clear()
        hub.update({(kind, "someone/one"): commit for kind, commit in commits.items()})

    change(dataset="a", model="b")
    agree()
    change()
    agree()
    change(dataset="a", model="b")
    agree()
    change(dataset="b", model="b")
    with pytest.raises(ConfigError, match="1 blocks .* from something else: input: commit was a, is b. Run with"):
        agree()
    change(dataset="a", model="a")
    with pytest.raises(ConfigError, match="something else: model: commit was b, is a. Run with"):
        agree()


def test_an_input_is_the_same_as_long_as_all_of_its_files_are(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("a.jsonl", "deep/b.jsonl"):
        (tmp_path / "in" / name).write_text('{"text": "Yes."}\n')
    before = fingerprint_of_source(Source(str(tmp_path / "in")))
    assert before == fingerprint_of_source(Source(str(tmp_path / "in")))
    assert before != fingerprint_of_source(Source(str(tmp_path / "in"), split="test"))
    os.utime(tmp_path / "in" / "deep" / "b.jsonl", (1, 1))
    assert fingerprint_of_source(Source(str(tmp_path / "in"))) != before


def test_a_model_that_is_verified_once_more_is_still_the_same(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    described = {"fingerprint": {"scores": [1.0, 2.0], "of": "a"}, "verified": "once"}
    write_description(tmp_path, described)
    before = fingerprint_of_model(str(tmp_path))
    write_description(tmp_path, described | {"verified": "twice, and later"})
    os.utime(tmp_path / "reward.json", (1, 1))
    assert fingerprint_of_model(str(tmp_path)) == before
    write_description(tmp_path, described | {"fingerprint": {"scores": [1.0, 2.5], "of": "a"}})
    assert fingerprint_of_model(str(tmp_path)) != before


def test_a_place_may_be_named_by_way_of_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "in.jsonl").write_text('{"text": "Yes."}\n')
    assert fingerprint_of_source(Source("~/in.jsonl")) == fingerprint_of_source(Source(str(tmp_path / "in.jsonl")))
    assert fingerprint_of_model("~/model") == fingerprint_of_model(str(tmp_path / "model"))
    assert [each.rows for each in Source("~/in.jsonl").chunks(2)] == [[{"text": "Yes."}]]
