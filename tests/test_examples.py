"""What a user copies from `examples/` is what the installed libraries accept."""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from nbclient import NotebookClient

from plaudit.cli.serve import command as serve

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "from_audit_to_report.ipynb"
FILES = sorted((EXAMPLES / "accelerate").glob("*.yaml"))
UNIT = (EXAMPLES / "plaudit-serve.service").read_text(encoding="utf-8")
CONTAINER = (EXAMPLES / "Containerfile").read_text(encoding="utf-8")
KINDS = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
    "deepspeed_zero3": DistributedType.DEEPSPEED,
}


def test_there_is_one_file_for_each_kind():
    assert {path.stem for path in FILES} == set(KINDS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_loads_each_file_and_knows_each_option(path):
    config = load_config_from_file(str(path))
    assert config.distributed_type == KINDS[path.stem]
    assert config.mixed_precision == "no"  # what `--bf16` says holds, and not two things
    known = vars(launch_command_parser().parse_args(["script"]))
    assert {*config.fsdp_config, *config.deepspeed_config} <= set(known)  # others it takes without a word


def test_zero_3_saves_its_weights_and_fsdp_is_the_second():
    assert load_config_from_file(str(FILES[0].with_name("deepspeed_zero3.yaml"))).deepspeed_config == {
        "zero_stage": 3, "zero3_init_flag": True, "zero3_save_16bit_model": True,
        "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
        "deepspeed_multinode_launcher": "standard",
    }  # fmt: skip
    assert load_config_from_file(str(FILES[0].with_name("fsdp2.yaml"))).fsdp_config["fsdp_version"] == 2


@pytest.mark.slow
def test_the_reinforced_policy_in_small(tmp_path, monkeypatch):
    """`make rl` is the whole one; here it runs from end to end, too short to learn anything."""
    pytest.importorskip("trl", reason="TRL is not beside this environment; `make test` puts it there")
    from plaudit.quickstart.demonstration import run_quickstart

    monkeypatch.chdir(tmp_path)
    run_quickstart(0, "quickstart-reward-model", train_pairs=320, test_pairs=50, responses=50)
    script = runpy.run_path(str(FILES[0].parents[1] / "grpo_true_reward.py"))
    script["main"](["--steps", "2", "--imitated", "64", "--judged", "16"])
    curves = json.loads(Path("grpo-true-reward/curves.json").read_text())
    assert list(curves) == list(script["RUNS"])
    for run in curves.values():
        assert run["step"] == [0, 1, 2]
        assert all(-6.2 <= value <= 5.5 for value in run["true"])
        assert len(set(run["learnt"])) == 3
    assert Path("grpo-true-reward/curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_notebook_leads_from_an_audit_to_a_report(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    for kind in ("leaked_exact", "duplicate_exact", "identical"):  # what the notebook has planted
        assert kind in printed
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_notebook_is_saved_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")] == []


def test_the_unit_and_the_image_start_a_server_that_the_command_knows():
    started = shlex.split(re.search(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)[1])
    assert started[0].endswith("/plaudit")
    image = json.loads(re.search(r"^ENTRYPOINT (.*)$", CONTAINER, re.MULTILINE)[1])
    image += json.loads(re.search(r"^CMD (.*)$", CONTAINER, re.MULTILINE)[1])
    for arguments in (started, image):
        assert arguments[1] == "serve"
        port = dict(re.findall(r"(\w+)=(\w+)", UNIT))["PORT"]
        given = [each.replace("${PORT}", port) for each in arguments[2:]]
        assert serve.make_context("serve", given).params["port"] == 8000


def test_the_image_runs_without_root_and_asks_whether_the_server_lives():
    assert re.search(r"^USER 10001$", CONTAINER, re.MULTILINE)
    assert "/live" in re.search(r"HEALTHCHECK .*\n.*", CONTAINER)[0]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path):
    unit = tmp_path / "plaudit-serve.service"
    unit.write_text(UNIT.replace("/opt/plaudit/bin/plaudit", "/bin/true"))  # the command must exist
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.environ.get("PLAUDIT_RAY"), reason="PLAUDIT_RAY names no folder with Ray; `make test` does")
def test_the_replicas_of_the_example_find_all_that_they_import():
    """tests/serving/test_ray_replicas.py runs the same replicas through `plaudit serve --engine ray`."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), os.environ["PLAUDIT_RAY"]]))
    command = [sys.executable, EXAMPLES / "serve_on_ray.py", "--help"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120, check=True
    )
    assert "--replicas" in done.stdout
