"""The output of the commands, and what they show while a model loads."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from plaudit.cli.display import console, show_table, spinner, while_importing

HIDDEN, SHOWN = "\x1b[?25l", "\x1b[?25h"  # the cursor
IMPORTING = "from plaudit.cli.display import while_importing\nwith while_importing(): print('the output')"


def test_a_title_is_shown_as_it_is_written():
    with console.capture() as shown:
        show_table("runs/[v2]/model[/b]", [("name", "[green]value[/green]")])
    assert "runs/[v2]/model[/b]" in shown.get()
    assert "value" in shown.get()
    assert "[green]" not in shown.get()


@pytest.fixture
def screen(monkeypatch):
    """A terminal, as a text file."""
    terminal = Console(force_terminal=True, file=io.StringIO(), width=80)
    monkeypatch.setattr("plaudit.cli.display.console", terminal)
    return terminal.file


def test_a_spinner_shows_its_text_and_leaves_nothing(screen):
    with spinner("Loading runs/[v2] ..."):
        pass
    text = screen.getvalue()
    assert "Loading runs/[v2] ..." in text
    assert text.count(HIDDEN) == text.count(SHOWN) == 1
    assert text.endswith("\x1b[1A\x1b[2K")  # up to its line, which is erased


def test_of_two_spinners_the_outer_one_shows(screen):
    with spinner("outer"), spinner("inner"):
        pass
    with spinner("next"):
        pass
    assert "outer" in screen.getvalue()
    assert "inner" not in screen.getvalue()
    assert "next" in screen.getvalue()


def test_a_spinner_leaves_the_standard_streams_alone(screen, capsys):
    with spinner("outer"):
        print("for the pipe")
        print("a warning", file=sys.stderr)
    assert capsys.readouterr() == ("for the pipe\n", "a warning\n")


def test_without_a_terminal_there_is_no_spinner(capsys):
    with spinner("outer"):
        pass
    assert capsys.readouterr() == ("", "")


def test_where_the_libraries_are_imported_already_nothing_is_said(screen, capsys):
    with while_importing():
        pass
    assert screen.getvalue() == ""
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("rank", "said"), [("0", "Loading torch and transformers ...\n"), ("1", "")])
def test_without_a_terminal_the_first_process_says_on_stderr_that_libraries_are_imported(rank, said):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING], env=os.environ | {"RANK": rank}, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("the output\n", said)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_on_a_terminal_a_command_shows_a_spinner_for_the_imports_and_one_for_the_model(model_folder, tmp_path):
    import pty

    (tmp_path / "rows.jsonl").write_text('{"text": "Is it?"}\n', encoding="utf-8")
    command = ["-m", "plaudit.cli", "score", tmp_path / "rows.jsonl", "--model", model_folder, "--output", "out.jsonl"]
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, *map(str, command)], os.environ | {"COLUMNS": "200"})
    shown = ""
    while read := _read(terminal):
        shown += read
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0, shown
    words = ["Loading torch and transformers ...", f"Loading {model_folder} ...", "1 rows", "Scored 1 rows"]
    places = [shown.index(word) for word in words]
    assert places == sorted(places)
    assert "Loading weights" not in shown  # the bar of transformers
    assert shown.count(HIDDEN) == shown.count(SHOWN) == 3  # two spinners and the bar of the rows


def _read(terminal):
    try:
        return os.read(terminal, 65536).decode(errors="replace")
    except OSError:  # Linux's end of a pseudo-terminal
        return ""
