import os
import signal
import subprocess
import sys
import textwrap
from functools import partial

import pytest

from plaudit.checkpoint.atomic import recover, remove_folder, staged_file, staged_folder, write_atomically


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def save(final, files, *, fail=False):
    with staged_folder(final) as folder:
        write(folder, files)
        if fail:
            raise ValueError("a tensor is not finite")


def content(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


# A file


@pytest.mark.parametrize("text", ["Grüße", "Grüße".encode()])
def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path, text):
    path = tmp_path / "reward.json"
    path.write_text("old")
    write_atomically(path, text)
    assert content(tmp_path) == {"reward.json": "Grüße"}


def test_a_file_whose_writing_fails_is_as_it_was(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("old")

    def fail():
        with staged_file(path) as file:
            file.write(b"half")
            raise ValueError("row 3")

    with pytest.raises(ValueError, match="row 3"):
        fail()
    assert content(tmp_path) == {"out.jsonl": "old"}


def test_a_staged_file_may_lie_in_another_folder(tmp_path):
    (tmp_path / "parts").mkdir()
    with staged_file(tmp_path / "out.jsonl", tmp_path / "parts" / "_rows") as file:
        file.write(b"new")
        assert [path.name for path in (tmp_path / "parts").iterdir()] == ["_rows"]
    assert content(tmp_path) == {"out.jsonl": "new"}


# A folder


def test_a_first_save_makes_the_folder_and_its_parents(tmp_path):
    save(tmp_path / "runs" / "a", {"model": "1", "sub/part": "2"})
    assert content(tmp_path) == {"runs/a/model": "1", "runs/a/sub/part": "2"}


def test_a_save_replaces_what_it_writes_and_nothing_else(tmp_path):
    save(tmp_path / "a", {"model": "old", "sub/gone": "old"})
    write(tmp_path / "a", {"checkpoint-1/model": "step 1", "notes.txt": "mine"})
    save(tmp_path / "a", {"model": "new", "sub/part": "new"})
    assert content(tmp_path / "a") == {
        "model": "new",
        "sub/part": "new",
        "checkpoint-1/model": "step 1",
        "notes.txt": "mine",
    }


@pytest.mark.parametrize("before", [{}, {"model": "old"}])
def test_a_failure_leaves_what_was_there_and_nothing_beside_it(tmp_path, before):
    if before:
        save(tmp_path / "a", before)
    with pytest.raises(ValueError, match="not finite"):
        save(tmp_path / "a", {"model": "half"}, fail=True)
    assert content(tmp_path) == {f"a/{name}": text for name, text in before.items()}
    assert (tmp_path / "a").exists() == bool(before)


def test_a_failure_leaves_an_empty_folder_that_was_there(tmp_path):
    with pytest.raises(ValueError, match="not finite"):
        save(tmp_path, {"model": "half"}, fail=True)
    assert tmp_path.is_dir()


def test_files_that_a_model_of_another_kind_left_are_removed(tmp_path):
    names = ("adapter_config.json", "adapter_model.safetensors", "model-00001-of-00002.safetensors", "notes.txt")
    write(tmp_path, dict.fromkeys(("checkpoint-3/adapter_config.json", *names), "old"))
    save(tmp_path, {"config.json": "new", "model.safetensors": "new"})
    assert content(tmp_path).keys() == {
        "checkpoint-3/adapter_config.json", "config.json", "model.safetensors", "notes.txt",
    }  # fmt: skip


def test_a_process_that_does_not_write_waits_and_touches_nothing(tmp_path):
    order = []
    with staged_folder(tmp_path / "a", writes=False, barrier=lambda: order.append("barrier")) as folder:
        order.append("body")
        assert not folder.exists()  # another process makes it
    # the folder is there before any process writes; all have written before it is moved; it is in place
    assert order == ["barrier", "body", "barrier", "barrier"]
    assert not list(tmp_path.iterdir())


def test_the_files_move_between_the_last_two_barriers(tmp_path):
    there = []
    with staged_folder(tmp_path, barrier=lambda: there.append((tmp_path / "model").exists())) as folder:
        (folder / "model").write_text("new")
    assert there == [False, False, True]


def test_a_process_killed_while_writing_leaves_the_old_model_and_the_next_save_cleans_up(tmp_path):
    save(tmp_path, {"model": "old"})
    script = f"""
        import os, signal
        from pathlib import Path
        from plaudit.checkpoint.atomic import staged_folder
        with staged_folder(Path({str(tmp_path)!r})) as folder:
            (folder / "model").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "model").read_text() == "old"
    save(tmp_path, {"model": "new"})
    assert content(tmp_path) == {"model": "new"}


def test_what_is_renamed_was_flushed_before(tmp_path, monkeypatch):
    order = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda file: order.append(os.readlink(f"/proc/self/fd/{file}")) or fsync(file))
    monkeypatch.setattr(os, "rename", lambda *paths, **more: order.append("rename") or rename(*paths, **more))
    save(tmp_path, {"model": "1"})
    assert order[:3] == [f"{tmp_path}/_saving-model/model", f"{tmp_path}/_saving-model", "rename"]
    assert order[-1] == str(tmp_path)


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


def test_a_first_save_that_is_killed_anywhere_is_undone_or_completed(tmp_path):
    seen = []
    for run in each_kill(lambda run: save(run, NEW), lambda run: run.mkdir(), tmp_path):
        if (run / "config.json").exists():  # what makes a folder load
            assert NEW.items() <= content(run).items()
        recover(run)
        seen.append(content(run))
        assert seen[-1] in ({}, NEW)
    assert (seen[0], seen[-1]) == ({}, NEW)


def test_a_save_over_a_model_that_is_killed_anywhere_is_undone_or_completed(tmp_path):
    others = {"checkpoint-1/model": "1", "notes.txt": "mine"}
    seen = []
    for number, run in enumerate(each_kill(lambda run: save(run, NEW), lambda run: write(run, OLD | others), tmp_path)):
        if number % 2:
            recover(run)
        else:  # the next save to the same place recovers as well
            with pytest.raises(ValueError, match="not finite"):
                save(run, {"model.safetensors": "third"}, fail=True)
        seen.append(content(run))
        assert seen[-1] in (OLD | others, NEW | others)
    assert (seen[0], seen[-1]) == (OLD | others, NEW | others)


def test_a_recovery_that_is_killed_anywhere_is_completed_by_the_next(tmp_path):
    def prepare(run):
        write(run / "_moving-model", {"config.json": "new", "model.safetensors": "new"})
        write(run / "_saving-model", {"model.safetensors": "half"})

    for run in each_kill(recover, prepare, tmp_path):
        recover(run)
        assert content(run) == {"config.json": "new", "model.safetensors": "new"}


def test_recovery_leaves_other_folders_alone(tmp_path):
    recover(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()
    write(tmp_path, OLD)
    recover(tmp_path)
    assert content(tmp_path) == OLD


def test_a_folder_whose_removal_is_killed_anywhere_is_complete_or_gone(tmp_path):
    for run in each_kill(lambda run: remove_folder(run / "a"), lambda run: write(run / "a", OLD), tmp_path):
        assert content(run / "a") in (OLD, {})
        remove_folder(run / "a")
        assert not list(run.iterdir())
