"""The chunks of a job on disk, without a model."""

import errno
import json
import os

import pytest

from plaudit.errors import CheckpointError, ConfigError, DataError
from plaudit.scoring.chunk_store import ChunkStore, Counts, rejected_path

MANIFEST = {"input": {"path": "one", "commit": "a"}, "model": {"path": "b"}, "options": {"threads": 1}}


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.jsonl"


@pytest.fixture
def chunk(scored_chunk):
    def make(number, rows=(), rejected=()):
        return scored_chunk(number, [{"n": n} for n in rows], [{"row": n} for n in rejected])

    return make


def read(path):
    return [next(iter(json.loads(line).values())) for line in path.read_text().splitlines()]


def nothing_is_left(folder):
    return not list(folder.glob("_*"))


def test_chunks_are_joined_in_the_order_of_their_numbers_whenever_they_came(output, chunk):
    with ChunkStore(output) as store:
        for number in (9, 1, 0, 3, 2, 8, 5, 4, 7, 6):
            store.add(chunk(number, [2 * number], [2 * number + 1]), None)
        assert store.counts == Counts(rows=10, rejected=10, tokens=100, truncated=10)
        store.finish()
    assert read(output) == list(range(0, 20, 2))
    assert read(rejected_path(output)) == list(range(1, 20, 2))
    assert nothing_is_left(output.parent)


def test_a_chunk_without_a_row_that_can_be_scored_leaves_no_gap(output, chunk):
    with ChunkStore(output) as store:
        for each in (chunk(0, [0]), chunk(1, (), [1]), chunk(2, [2])):
            store.add(each, None)
        store.finish()
    assert read(output) == [0, 2]


def test_what_an_earlier_start_has_added_is_known(output, chunk):
    with ChunkStore(output) as store:
        store.check_manifest(MANIFEST)
        store.add(chunk(0, [0, 1]), None)
        store.add(chunk(2, [2], [3]), None)
    with ChunkStore(output) as store:
        assert store.done == {0, 2}
        assert store.counts == Counts(rows=3, rejected=1, tokens=20, truncated=2)
        assert store.options == {"threads": 1}
    with ChunkStore(output, restart=True) as store:
        assert (store.done, store.counts, store.options) == (set(), Counts(), {})


def test_a_chunk_that_is_missing_is_no_short_output(output, chunk):
    with ChunkStore(output) as store:
        store.add(chunk(0, [0]), None)
        store.add(chunk(2, [2]), None)
        with pytest.raises(CheckpointError, match="chunk 1 is missing. Run the same command again"):
            store.finish()
    with ChunkStore(output) as again:
        assert again.done == {0, 2}
    assert not output.exists()


def test_without_a_row_that_can_be_scored_there_is_no_output_but_the_reasons(output, chunk):
    with ChunkStore(output) as store:
        store.add(chunk(0, (), [0, 1]), None)
        with pytest.raises(DataError, match=f"none of the 2 rows could be scored.*'{rejected_path(output)}'"):
            store.finish()
    assert read(rejected_path(output)) == [0, 1]
    assert not output.exists()


def test_the_rejected_rows_of_an_earlier_output_do_not_stay_beside_the_new_one(output, chunk):
    for rejected in ([1], []):
        with ChunkStore(output, restart=True) as store:
            store.add(chunk(0, [0], rejected), None)
            store.finish()
        assert rejected_path(output).exists() == bool(rejected)


def test_chunks_of_another_manifest_are_not_joined_with(output, chunk):
    with ChunkStore(output) as store:
        store.check_manifest(MANIFEST)
        store.check_manifest(changed := MANIFEST | {"options": {"threads": 2}})  # nothing is scored yet
        store.add(chunk(0, [0]), None)
    with ChunkStore(output) as store:
        store.check_manifest(changed)
        with pytest.raises(
            ConfigError, match="1 chunks .* from something else: options: threads was 2, is 1.*--restart"
        ):
            store.check_manifest(MANIFEST)


def test_an_output_that_exists_is_not_replaced_unless_that_is_asked_for(output, chunk):
    output.write_text("mine")
    with pytest.raises(ConfigError, match="'.*out.jsonl' exists already. Name another output, or give --restart"):
        ChunkStore(output)
    assert nothing_is_left(output.parent)
    with ChunkStore(output, restart=True) as store:
        assert output.read_text() == "mine"
        store.add(chunk(0, [0]), None)
        store.finish()
    assert read(output) == [0]


def test_two_jobs_at_a_time_do_not_write_the_same_output(output, chunk):
    with ChunkStore(output) as store:
        store.add(chunk(0, [0]), None)
        for restart in (False, True):
            with pytest.raises(ConfigError, match="another run is writing"):
                ChunkStore(output, restart=restart)
        assert ChunkStore(output.with_name("other.jsonl")).done == set()
        store.finish()
    assert read(output) == [0]


def test_a_job_that_scored_nothing_leaves_nothing(output):
    with ChunkStore(output) as store:
        store.check_manifest(MANIFEST)
    assert nothing_is_left(output.parent)


def test_what_a_kill_left_half_written_is_taken_away(output, chunk):
    with ChunkStore(output) as store:
        store.add(chunk(0, [0]), None)
    (output.parent / "_scoring-out.jsonl" / "_rows-1").write_text("half of the output")
    (output.parent / "_removed-_scoring-out.jsonl").mkdir()
    with ChunkStore(output) as store:
        assert not (output.parent / "_scoring-out.jsonl" / "_rows-1").exists()
        store.finish()
    assert nothing_is_left(output.parent)


def test_all_that_is_renamed_is_on_the_disk_first(output, chunk, monkeypatch):
    synced, renamed, replace = {}, [], os.replace

    def noted(one, other):
        assert synced[os.stat(one).st_ino] == os.stat(one).st_size > 0, other
        renamed.append(other.name)
        replace(one, other)

    monkeypatch.setattr("os.fsync", lambda file: synced.update({os.fstat(file).st_ino: os.fstat(file).st_size}))
    monkeypatch.setattr("os.replace", noted)
    with ChunkStore(output) as store:
        store.check_manifest(MANIFEST)
        store.add(chunk(0, [0], [1]), None)
        store.finish()
    assert renamed == [
        "manifest.json", "00000000.rows", "00000000.rejected", "00000000.json", "out.jsonl.rejected.jsonl", "out.jsonl",
    ]  # fmt: skip


def test_a_full_disk_is_said_and_gone_on_from(output, chunk, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    going_on = "The same command .without --restart. goes on after the 3 rows"
    with ChunkStore(output) as store:
        store.add(chunk(0, [0, 1, 2]), None)
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            with pytest.raises(CheckpointError, match=f"could not be written.*{going_on}"):
                store.add(chunk(1, [3]), None)
            with pytest.raises(CheckpointError, match="could not be written: .*No space left"):
                store.finish()
    with ChunkStore(output) as store:
        assert store.done == {0}
        assert {path.name for path in (output.parent / "_scoring-out.jsonl").iterdir()} <= {
            "00000000.json", "00000000.rows", "00000001.rows",
        }  # fmt: skip


def test_another_failure_of_the_disk_is_not_taken_for_a_full_one(output, chunk, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.fsync", broken)
    with ChunkStore(output) as store, pytest.raises(OSError, match="Input/output error"):
        store.add(chunk(0, [0]), None)
