"""Two local Ray workers write what the local executor writes, bit for bit.

Ray lies in a folder of its own, which `make test` installs and names in PLAUDIT_RAY: only the process launched here
sees it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plaudit.data.reader import Source
from plaudit.errors import DataError
from plaudit.scoring.job import score_file
from plaudit.scoring.worker import ScoringConfig

SCRIPT = Path(__file__).with_name("ray_scoring.py")
FOLDER = os.environ.get("PLAUDIT_RAY")
BAD = 200  # in the fourth chunk of 64 rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="PLAUDIT_RAY names no folder with Ray; `make test` does"),
]


def texts(count):
    return [{"number": n, "text": f"Is it {n}? " + "Yes, the sky is blue. " * (n % 7)} for n in range(count)]


@pytest.fixture
def folder(make_model, tokenizer, tmp_path):
    """A model without a scale, and rows one of which cannot be scored."""
    for part in (make_model(pad_token_id=tokenizer.pad_token_id), tokenizer):
        part.save_pretrained(tmp_path / "model")
    rows = [*texts(BAD), {"text": ""}, *texts(500)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def score_here(folder, output, **options):
    config = ScoringConfig(str(folder / "model"), "cpu", 1, chunk_rows=64, **options)
    return score_file(Source(str(folder / "in.jsonl")), folder / output, config)


def score_on_ray(folder, *runs):
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), FOLDER]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", SCRIPT, folder, json.dumps(runs)],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert "OUTCOMES" in done.stdout, f"it ended with {done.returncode}: {done.stdout} {done.stderr[-3000:]}"
    return json.loads(done.stdout.split("OUTCOMES ")[1].splitlines()[0])  # Ray may print lines of its own behind it


def test_workers_on_ray_go_on_with_a_local_job_to_the_same_bytes(folder):
    score_here(folder, "whole.parquet", skip_bad_rows=True)
    with pytest.raises(DataError, match=f"row {BAD}"):
        score_here(folder, "ray.parquet")
    options = {"chunk_rows": 64}
    workers, refused, unnormalized, device = score_on_ray(
        folder,
        ("ray.parquet", (2, 2), options | {"skip_bad_rows": True}),
        ("error.parquet", (1, 1), options),
        ("normal.parquet", (1, 1), options | {"normalize": True}),
    )
    assert workers == 2
    for suffix in ("", ".rejected.jsonl"):
        assert (folder / f"ray.parquet{suffix}").read_bytes() == (folder / f"whole.parquet{suffix}").read_bytes()
    assert refused.startswith(f"row {BAD}")
    assert "normalize: the model was saved without" in unnormalized
    assert device == "cpu"
