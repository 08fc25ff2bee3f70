import pytest

from plaudit.checkpoint.fresh_process import reload_and_score
from plaudit.checkpoint.verify import verify


@pytest.fixture
def run(tmp_path):
    """The result of a request to a program of a few lines."""

    def run(program, **request):
        path = tmp_path / "program.py"
        path.write_text(program)
        return reload_and_score(request, path)

    return run


def test_the_answer_is_what_the_program_writes(run):
    program = "import json, sys\nopen(sys.argv[1], 'w').write(json.dumps({'alone': json.load(sys.stdin)['ids']}))"
    assert run(program, ids=[[5, 6]]) == {"alone": [[5, 6]]}


@pytest.mark.parametrize(
    ("program", "layer", "holds"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "rewards", None),
        ("raise MemoryError", "rewards", None),
        ("raise ValueError('the head is gone')", "reload", False),
        ("raise ValueError('the head is gone\\nfor many\\nlines')", "reload", False),
        ("raise RuntimeError('GPU is required to quantize or run quantize model.')", "reload", None),
        ("raise OSError('the head is gone')", "reload", False),
        ("raise SystemExit(7)", "reload", False),
    ],
)
def test_a_process_that_runs_out_of_memory_is_told_from_a_model_that_does_not_load(run, program, layer, holds):
    finding = run(program)
    assert (finding.layer, finding.holds) == (layer, holds)
    if "the head is gone" in program:
        assert finding.message.endswith("Error: the head is gone")
    if "SystemExit" in program:
        assert "exit code 7" in finding.message


def test_a_base_that_cannot_be_fetched_leaves_the_reload_open(run):
    finding = run('raise OSError("We couldn\'t connect.\\nCheck your connection.")', quantization=None)
    assert finding.holds is None
    assert "base could not be loaded: OSError: We couldn't connect" in finding.message


def test_the_process_knows_nothing_of_launchers_devices_or_plaudit(run, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    finding = run(
        "import json, os, sys\n"
        "assert 'plaudit' not in sys.modules and sys.path[0] != os.path.dirname(__file__)\n"
        "names = ('RANK', 'ACCELERATE_USE_FSDP', 'CUDA_VISIBLE_DEVICES')\n"
        "raise SystemExit(json.dumps([os.environ.get(name) for name in names]))"
    )
    assert '[null, null, ""]' in finding.message


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_a_fresh_process_gives_the_same_rewards(request, kind):
    result = verify(request.getfixturevalue(kind))
    assert result.status == "verified", result.findings
    assert result.engine.startswith("transformers ")
    assert result.difference < 1e-5
