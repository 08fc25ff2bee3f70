import os
import signal
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest
from transformers.trainer_utils import get_last_checkpoint

from plaudit.checkpoint.atomic import recover, remove_folder, staged_folder


def alone():
    """The barrier of a single process."""


def save(final, files, *, keep_others=False, fail=False):
    with staged_folder(final, keep_others=keep_others, writes=True, barrier=alone) as folder:
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        if fail:
            raise OSError("the disk is full")


def content(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("keep_others", [True, False])
def test_a_first_save_makes_the_folder_and_those_above_it(tmp_path, keep_others):
    save(tmp_path / "runs" / "a", {"model": "1", "sub/part": "2"}, keep_others=keep_others)
    assert content(tmp_path) == {"runs/a/model": "1", "runs/a/sub/part": "2"}


def test_a_swapped_folder_holds_the_new_files_only(tmp_path):
    save(tmp_path / "a", {"model": "old", "extra": "old"})
    save(tmp_path / "a", {"model": "new"})
    assert content(tmp_path) == {"a/model": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_keeps_others_replaces_what_it_writes_and_nothing_else(tmp_path):
    save(tmp_path / "a", {"model": "old", "sub/gone": "old"}, keep_others=True)
    (tmp_path / "a" / "checkpoint-1").mkdir()
    (tmp_path / "a" / "checkpoint-1" / "model").write_text("step 1")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    save(tmp_path / "a", {"model": "new", "sub/part": "new"}, keep_others=True)
    assert content(tmp_path) == {
        "a/model": "new",
        "a/sub/part": "new",
        "a/checkpoint-1/model": "step 1",
        "a/notes.txt": "mine",
    }
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("keep_others", [True, False])
@pytest.mark.parametrize("before", [{}, {"model": "old"}])
def test_a_failure_leaves_what_stood_there_and_nothing_beside_it(tmp_path, keep_others, before):
    if before:
        save(tmp_path / "a", before, keep_others=keep_others)
    with pytest.raises(OSError, match="the disk is full"):
        save(tmp_path / "a", {"model": "half"}, keep_others=keep_others, fail=True)
    assert content(tmp_path) == {f"a/{name}": text for name, text in before.items()}
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("keep_others", [True, False])
def test_a_process_killed_while_writing_leaves_the_old_folder_and_the_next_save_cleans_up(tmp_path, keep_others):
    final = tmp_path / "checkpoint-7"
    save(final, {"model": "old"}, keep_others=keep_others)
    script = f"""
        import os, signal
        from pathlib import Path
        from plaudit.checkpoint.atomic import recover, remove_folder, staged_folder
        final = Path({str(final)!r})
        with staged_folder(final, keep_others={keep_others}, writes=True, barrier=lambda: None) as folder:
            (folder / "model").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (final / "model").read_text() == "old"
    assert get_last_checkpoint(str(tmp_path)) == str(final)  # not what the killed process left beside it
    save(final, {"model": "new"}, keep_others=keep_others)
    assert content(tmp_path) == {"checkpoint-7/model": "new"}


def test_a_folder_being_written_is_not_taken_for_a_checkpoint(tmp_path):
    with staged_folder(tmp_path / "checkpoint-3", keep_others=False, writes=True, barrier=alone) as folder:
        (folder / "model").write_text("half")
        assert get_last_checkpoint(str(tmp_path)) is None
    assert get_last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-3")


def test_a_folder_being_swapped_is_not_taken_for_a_checkpoint_under_either_name(tmp_path, monkeypatch):
    save(tmp_path / "checkpoint-3", {"model": "old"})
    seen = []
    real = os.rename

    def rename(source, target, **options):
        real(source, target, **options)
        seen.append(get_last_checkpoint(str(tmp_path)))

    monkeypatch.setattr(os, "rename", rename)
    save(tmp_path / "checkpoint-3", {"model": "new"})
    assert seen == [None, str(tmp_path / "checkpoint-3")]


def test_a_process_that_does_not_write_waits_and_touches_nothing(tmp_path):
    order = []
    with staged_folder(
        tmp_path / "a",
        keep_others=False,
        writes=False,
        barrier=lambda: order.append("barrier"),
        first_of_node=False,
    ) as folder:
        order.append("body")
        assert not folder.exists()  # another process makes it
    # all look before one clears; it is there, on every node, before any writes; all have written before one renames;
    # it is in place
    assert order == ["barrier", "barrier", "barrier", "body", "barrier", "barrier"]
    assert not list(tmp_path.iterdir())


def test_the_folder_moves_between_the_last_two_barriers(tmp_path):
    there = []
    with staged_folder(
        tmp_path / "a", keep_others=True, writes=True, barrier=lambda: there.append((tmp_path / "a").exists())
    ):
        pass
    assert there == [False, False, False, False, True]


def test_a_node_with_a_file_system_of_its_own_makes_and_renames_its_folder(tmp_path):
    with staged_folder(tmp_path / "a", keep_others=False, writes=False, barrier=lambda: None) as folder:
        (folder / "rng_state_8.pth").write_text("this node's")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "rng_state_8.pth").read_text() == "this node's"


def test_what_another_kind_of_model_left_is_gone(tmp_path):
    final = tmp_path / "out"
    (final / "checkpoint-3").mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors", "model-00001-of-00002.safetensors", "notes.txt"):
        (final / name).write_text("old")
    with staged_folder(final, keep_others=True, writes=True, barrier=lambda: None) as folder:
        (folder / "config.json").write_text("new")
        (folder / "model.safetensors").write_text("new")
    assert {path.name for path in final.iterdir()} == {"checkpoint-3", "config.json", "model.safetensors", "notes.txt"}


# Killed at every single call that touches the disk

TOUCHING = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}
OLD = {"config.json": "old", "adapter_model.safetensors": "old", "sub/part": "old"}
NEW = {"config.json": "new", "model.safetensors": "new", "sub/part": "new", "more": "new"}


def killed_at(call, act):
    """Run `act` in a process that is killed before its call number `call` to the file system; whether it was."""
    child = os.fork()
    if child == 0:
        calls = iter(range(1, 1 << 30))
        sys.addaudithook(lambda event, _: event in TOUCHING and next(calls) == call and os.kill(os.getpid(), 9))
        act()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def each_kill(act, prepare, folder):
    """A fresh folder as a kill at each call has left it."""
    call, killed = 0, True
    while killed:
        call += 1
        run = folder / str(call)
        prepare(run)
        killed = killed_at(call, partial(act, run))
        yield run
    assert call > 5


@pytest.mark.parametrize("before", [None, OLD])
def test_a_checkpoint_whose_save_is_killed_anywhere_is_the_old_one_or_the_new_one(tmp_path, before):
    def prepare(run):
        save(run / "checkpoint-1", {"model": "1"})
        if before:
            save(run / "checkpoint-2", before)

    seen = []
    for run in each_kill(lambda run: save(run / "checkpoint-2", NEW), prepare, tmp_path):
        newest = get_last_checkpoint(str(run))
        assert content(Path(newest)) in ({"model": "1"}, before, NEW)
        recover(run)
        assert {path.name for path in run.iterdir()} <= {"checkpoint-1", "checkpoint-2"}
        seen.append(content(run / "checkpoint-2"))
        assert seen[-1] in (before or {}, NEW)
        assert content(run / "checkpoint-1") == {"model": "1"}
    assert seen[0] == (before or {})
    assert seen[-1] == NEW


def test_a_save_among_others_that_is_killed_anywhere_is_undone_or_ended(tmp_path):
    others = {"checkpoint-1/model": "1", "notes.txt": "mine"}

    def prepare(run):
        for name, text in (OLD | others).items():
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_text(text)

    seen = []
    for number, run in enumerate(each_kill(lambda run: save(run, NEW, keep_others=True), prepare, tmp_path)):
        if number % 2:
            recover(run)
        else:  # the next save to the same place does it as well
            with pytest.raises(OSError, match="the disk is full"):
                save(run, {"model.safetensors": "third"}, keep_others=True, fail=True)
        seen.append(content(run))
        assert seen[-1] in (OLD | others, NEW | others)
    assert seen[0] == OLD | others
    assert seen[-1] == NEW | others


def test_a_recovery_that_is_killed_anywhere_is_ended_by_the_next(tmp_path):
    def prepare(run):
        save(run / "_moving-model", {"config.json": "new", "model.safetensors": "new"})
        save(run / "_replaced-checkpoint-2", {"model": "2"})
        save(run / "_saving-checkpoint-3", {"model": "half"})
        save(run / "_removed-checkpoint-1", {"model": "half"})

    whole = {"config.json": "new", "model.safetensors": "new", "checkpoint-2/model": "2"}
    for run in each_kill(recover, prepare, tmp_path):
        recover(run)
        assert content(run) == whole


def test_a_folder_whose_removal_is_killed_anywhere_is_whole_or_gone(tmp_path):
    for run in each_kill(
        lambda run: remove_folder(run / "checkpoint-2"), lambda run: save(run / "checkpoint-2", OLD), tmp_path
    ):
        assert content(run / "checkpoint-2") in (OLD, {})
        recover(run)
        assert {path.name for path in run.iterdir()} <= {"checkpoint-2"}


def test_a_first_save_beside_its_place_that_was_killed_leaves_nothing_after_recovery(tmp_path):
    save(tmp_path / "_saving-run", {"model": "half"})
    recover(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_what_is_renamed_is_on_the_disk_before(tmp_path, monkeypatch):
    order = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda file: order.append(os.readlink(f"/proc/self/fd/{file}")) or fsync(file))
    monkeypatch.setattr(os, "rename", lambda *paths, **more: order.append("rename") or rename(*paths, **more))
    save(tmp_path / "a", {"model": "1"})
    assert order == [f"{tmp_path}/_saving-a/model", f"{tmp_path}/_saving-a", "rename", str(tmp_path)]
