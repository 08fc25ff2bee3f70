"""The group of commands: help without heavy imports, errors, signals."""

import errno
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from plaudit.cli import cli, main
from plaudit.errors import ConfigError

COMMANDS = [
    "quickstart", "audit", "train", "verify", "eval", "compare", "report", "merge", "ensemble", "laplace",
    "score", "serve",
]  # fmt: skip
# NumPy is not among them: `score` and `eval` list the aggregates, which its functions compute.
HEAVY = {
    "accelerate", "datasets", "huggingface_hub", "matplotlib", "pandas", "peft", "requests", "scipy", "sklearn",
    "torch", "transformers",
}  # fmt: skip
HELP = f"""
import sys
from click.testing import CliRunner
from plaudit.cli import cli
for arguments in ([], *([name] for name in {COMMANDS})):
    result = CliRunner().invoke(cli, [*arguments, "--help"])
    assert result.exit_code == 0 and result.output.startswith("Usage: "), result.output
print(sorted({HEAVY} & sys.modules.keys()))
"""


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `plaudit verify` with a body of the test's; the exit code, and what was printed as an error."""

    def run(body):
        monkeypatch.setattr("plaudit.cli.verify.command", click.Command("verify", callback=body))
        monkeypatch.setattr("sys.argv", ["plaudit", "verify"])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().err.strip()

    return run


def raising(error):
    def body():
        raise error

    return body


def test_no_help_waits_for_the_import_of_a_large_library():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_help_lists_the_commands():
    text = CliRunner().invoke(cli, ["--help"]).output
    assert [line.split()[0] for line in text.split("Commands:\n")[1].splitlines() if line[2] != " "] == COMMANDS


def test_ctrl_c_ends_a_command_as_a_shell_expects(run):
    """click's own exit code, 1, is that of a verification that failed."""
    assert run(raising(KeyboardInterrupt)) == (130, "Stopped.")


def test_an_error_of_plaudit_is_printed_without_a_traceback(run):
    assert run(raising(ConfigError("--dtype: expected a type."))) == (2, "Error: --dtype: expected a type.")


@pytest.mark.parametrize("error", [ValueError("of a library"), FileNotFoundError("gone"), ImportError("no package")])
def test_an_error_of_a_library_too_with_the_way_to_its_traceback(run, monkeypatch, error):
    monkeypatch.delenv("PLAUDIT_TRACEBACK", raising=False)
    kind = type(error).__name__
    assert run(raising(error)) == (2, f"Error: {error} ({kind}; PLAUDIT_TRACEBACK=1 shows where it comes from)")
    monkeypatch.setenv("PLAUDIT_TRACEBACK", "1")
    monkeypatch.setattr("plaudit.cli.verify.command", click.Command("verify", callback=raising(error)))
    with pytest.raises(type(error)):
        main()


def test_other_errors_are_bugs_and_show_their_traceback(run):
    with pytest.raises(ZeroDivisionError):
        run(raising(ZeroDivisionError()))


def test_a_full_disk_is_said_with_the_variable_that_moves_the_cache(run):
    code, said = run(raising(OSError(errno.ENOSPC, "No space left on device")))
    assert code == 2
    assert said.endswith(
        "No space left on device. The disk is full; HF_DATASETS_CACHE moves the cache of tokenised data."
    )
