"""A full disk: real limits in processes of their own, and the words of each library."""

import errno
import os
import resource
import signal
import sys

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from plaudit.checkpoint.atomic import staged_folder
from plaudit.checkpoint.disk_full import explain_disk_full, is_disk_full
from plaudit.checkpoint.integrity import mark_unfinished
from plaudit.errors import CheckpointError

WRITERS = {
    "safetensors": lambda folder: save_file({"a": torch.zeros(100_000)}, folder / "model.safetensors"),
    "torch": lambda folder: torch.save({"a": torch.zeros(100_000)}, folder / "optimizer.pt"),
    "text": lambda folder: (folder / "trainer_state.json").write_text("a" * 100_000),
}


def in_a_small_place(act):
    """Run `act` in a forked process that may write at most 50 kB into a file; return what it raises, as text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            act()
            answer = "it could be written"
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, answer.encode())
        sys.stdout.flush()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


def save(final, write):
    with staged_folder(final) as folder:
        write(folder)


def checkpoint(path, write, *, marker=True):
    """Write a checkpoint as transformers does: in place, `trainer_state.json` last."""
    path.mkdir(parents=True)
    with explain_disk_full(path):
        write(path)
        if marker:
            (path / "trainer_state.json").write_text("{}")


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_checkpoint_that_does_not_fit_is_a_clear_error_that_names_the_last_one(tmp_path, writer):
    checkpoint(tmp_path / "checkpoint-1", WRITERS["safetensors"])
    answer = in_a_small_place(lambda: checkpoint(tmp_path / "checkpoint-2", WRITERS[writer]))
    assert answer.startswith(f"CheckpointError: '{tmp_path}/checkpoint-2' could not be written: "), answer
    assert "are free on that disk" in answer
    assert f"'{tmp_path}/checkpoint-1' still stands, and takes 400 kB: make room for as much and resume" in answer


def test_a_run_that_has_no_checkpoint_yet_starts_again(tmp_path):
    answer = in_a_small_place(lambda: checkpoint(tmp_path / "checkpoint-2", WRITERS["text"]))
    assert answer.endswith("Make room and start again.")


def test_in_a_runs_folder_the_checkpoint_that_was_being_written_is_named(tmp_path):
    checkpoint(tmp_path / "checkpoint-1", WRITERS["text"])
    checkpoint(tmp_path / "checkpoint-2", WRITERS["text"], marker=False)
    mark_unfinished(tmp_path / "checkpoint-2")
    with pytest.raises(CheckpointError) as raised, explain_disk_full(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(raised.value).startswith(f"'{tmp_path}/checkpoint-2' could not be written: [Errno {errno.ENOSPC}]")
    assert "checkpoint-1' still stands" in str(raised.value)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_final_save_that_does_not_fit_leaves_the_model_that_was_there(tmp_path, writer):
    save(tmp_path / "run", WRITERS["text"])
    checkpoint(tmp_path / "run" / "checkpoint-3", WRITERS["text"])
    before = files(tmp_path)
    answer = in_a_small_place(lambda: save(tmp_path / "run", WRITERS[writer]))
    assert answer.startswith(f"CheckpointError: '{tmp_path}/run' could not be written")
    assert f"'{tmp_path}/run/checkpoint-3' still stands" in answer
    assert files(tmp_path) == before


def test_an_output_file_may_come_with_other_advice(tmp_path):
    def write():
        with explain_disk_full(tmp_path / "out.jsonl", advice="Make room and run the same command again."):
            (tmp_path / "out.jsonl").write_text("a" * 100_000)

    answer = in_a_small_place(write)
    assert answer.startswith(f"CheckpointError: '{tmp_path}/out.jsonl' could not be written: [Errno {errno.EFBIG}]")
    assert answer.endswith("Make room and run the same command again.")


def test_an_error_that_was_explained_is_not_explained_again(tmp_path):
    with pytest.raises(CheckpointError) as raised, explain_disk_full(tmp_path), explain_disk_full(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(raised.value).startswith(f"'{tmp_path}/out' could not be written")


NO_SPACE = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    OSError(errno.EFBIG, "File too large"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
]


@pytest.mark.parametrize("error", NO_SPACE, ids=str)
def test_each_librarys_error_for_a_full_disk_is_known(tmp_path, error):
    assert is_disk_full(error)
    with pytest.raises(CheckpointError) as raised, explain_disk_full(tmp_path / "checkpoint-2"):
        raise ValueError("the tokenizer could not be saved") from error
    assert "the tokenizer could not be saved" in str(raised.value)


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "Permission denied"), RuntimeError("CUDA error"), SafetensorError("(os error 13)")]
)
def test_other_errors_stay_what_they_are(tmp_path, error):
    assert not is_disk_full(error)
    with pytest.raises(type(error)) as raised, explain_disk_full(tmp_path / "checkpoint-2"):
        raise error
    assert raised.value is error
