"""A full disk: real limits in processes of their own, and the words of each library."""

import errno
import os
import resource
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from plaudit.checkpoint.atomic import staged_folder
from plaudit.checkpoint.disk_full import room_error
from plaudit.errors import CheckpointError

WRITERS = {
    "safetensors": lambda folder: save_file({"a": torch.zeros(100_000)}, folder / "model.safetensors"),
    "torch": lambda folder: torch.save({"a": torch.zeros(100_000)}, folder / "optimizer.pt"),
    "text": lambda folder: (folder / "trainer_state.json").write_text("a" * 100_000),
}


def in_a_small_place(act):
    """What `act` says in a forked process that may write no more than 50 kB into a file."""
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


def save(final, write, keep_others=False):
    with staged_folder(final, keep_others=keep_others, writes=True, barrier=lambda: None) as folder:
        write(folder)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_checkpoint_that_does_not_fit_is_a_clear_error_and_the_one_before_stands(tmp_path, writer):
    save(tmp_path / "checkpoint-1", WRITERS["safetensors"])
    before = files(tmp_path)
    answer = in_a_small_place(lambda: save(tmp_path / "checkpoint-2", WRITERS[writer]))
    assert answer.startswith(f"CheckpointError: '{tmp_path}/checkpoint-2' could not be written: "), answer
    assert f"about 400 kB, as {tmp_path}/checkpoint-1 takes" in answer
    assert "are free on that disk" in answer
    assert f"'{tmp_path}/checkpoint-1' still stands: make room and resume from it." in answer
    assert files(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_final_save_that_does_not_fit_leaves_the_model_that_was_there(tmp_path, writer):
    save(tmp_path / "run", WRITERS["text"], keep_others=True)
    save(tmp_path / "run" / "checkpoint-3", WRITERS["text"])
    before = files(tmp_path)
    answer = in_a_small_place(lambda: save(tmp_path / "run", WRITERS[writer], keep_others=True))
    assert answer.startswith(f"CheckpointError: '{tmp_path}/run' could not be written")
    assert f"'{tmp_path}/run/checkpoint-3' still stands" in answer
    assert files(tmp_path) == before


NO_ROOM = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    OSError(errno.EFBIG, "File too large"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
]


@pytest.mark.parametrize("error", NO_ROOM, ids=str)
def test_every_librarys_words_for_a_full_disk_are_known(tmp_path, error):
    (tmp_path / "_saving-checkpoint-2").mkdir()
    found = room_error(error, tmp_path / "_saving-checkpoint-2", tmp_path / "checkpoint-2")
    assert isinstance(found, CheckpointError)
    assert str(error) in str(found)


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "Permission denied"), RuntimeError("CUDA error"), SafetensorError("(os error 13)")]
)
def test_other_errors_stay_what_they_are(tmp_path, error):
    def fail(_: Path):
        raise error

    with pytest.raises(type(error)) as raised:
        save(tmp_path / "checkpoint-2", fail)
    assert raised.value is error
