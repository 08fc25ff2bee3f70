"""Two local Ray workers write what the local engine writes, bit for bit.

Ray lies in a folder of its own, which `make test` installs and names in PLAUDIT_RAY: only the processes launched here
see it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("ray_scoring.py")
FOLDER = os.environ.get("PLAUDIT_RAY")
BAD = 450  # in the fourth block of 128 rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="PLAUDIT_RAY names no folder with Ray; `make test` does"),
]


@pytest.fixture(scope="module")
def environment():
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), FOLDER]))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "COLUMNS": "1000"}


def texts(count):
    return [{"number": n, "text": f"Is it {n}? " + "Yes, the sky is blue. " * (n % 7)} for n in range(count)]


def local(environment, arguments):
    command = [sys.executable, "-m", "plaudit.cli", "score", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_workers_on_ray_go_on_with_a_local_run_to_the_same_bytes(make_model, tokenizer, tmp_path, environment):
    model = make_model()
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [*texts(BAD), {"text": ""}, *texts(1000)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def arguments(output, *more, folder=""):
        paths = [f"{folder}in.jsonl", "--model", f"{folder}model", "--output", folder + output]
        return [*paths, "--device", "cpu", "--threads", "1", "--batch_rows", "128", *more]

    skip = ("--on_error", "skip")
    whole, begun = (
        local(environment, arguments(*each, folder=f"{tmp_path}/"))
        for each in (("whole.parquet", *skip), ("ray.parquet",))
    )
    assert whole.returncode == 0, whole.stderr
    assert begun.returncode == 2
    assert f"row {BAD}" in begun.stderr
    runs = [
        arguments("ray.parquet", *skip, "--workers", "2"),
        arguments("error.parquet", "--workers", "1:2"),
        arguments("error.parquet", "--workers", "1", "--normalize", "--restart"),
    ]
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", SCRIPT, json.dumps(runs), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "OUTCOMES" in done.stdout, f"it ended with {done.returncode}: {done.stdout} {done.stderr[-3000:]}"
    scored, refused, unnormalized = json.loads(done.stdout.split("OUTCOMES ")[1])
    assert "Going on after 384 rows" in scored
    assert "Scored 1,450 rows" in scored
    assert "by 2 workers" in scored
    for suffix in ("", ".rejected.jsonl"):
        assert (tmp_path / f"ray.parquet{suffix}").read_bytes() == (tmp_path / f"whole.parquet{suffix}").read_bytes()
    assert refused.startswith(f"row {BAD}")
    assert "normalize: the model was saved without" in unnormalized
