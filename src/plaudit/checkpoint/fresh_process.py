"""The fresh process that runs `reload.py`, and the diagnosis where it gives no answer."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import is_offline_mode

from plaudit.checkpoint import reload
from plaudit.checkpoint.inspection import Finding

__all__ = ["reload_and_score"]

_OUT_OF_MEMORY = ("MemoryError", "can't allocate memory", "Cannot allocate memory")
_EXCEPTION = re.compile(r"[\w.]+(Error|Exception)\b")
_NEEDS_GPU = re.compile(r"GPU (or XPU )?(is required|is needed|found)|requires a GPU")  # some quantised bases
# With these a fresh process would take itself for one of several.
_LAUNCHER_VARIABLES = (
    "ACCELERATE_", "DEEPSPEED_", "FSDP_", "GROUP_", "LOCAL_", "MASTER_", "RANK", "ROLE_", "TORCHELASTIC_", "WORLD_",
)  # fmt: skip


def reload_and_score(request: dict[str, Any], program: str | Path = reload.__file__) -> dict[str, Any] | Finding:
    """Have a fresh process load a saved model and score sequences, on the CPU.

    Args:
        request: The arguments of `plaudit.checkpoint.reload.score`.
        program: The program to run.

    Returns:
        The result of `plaudit.checkpoint.reload.score`; a finding if the process failed. The finding is open where the
        model may be sound: memory ran out, the base could not be fetched, or the weights need a GPU.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHER_VARIABLES)}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # training may have filled the device
    if is_offline_mode():
        environment["HF_HUB_OFFLINE"] = "1"  # the base of an adapter may be in the hub's cache
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch, "answer.json")
        done = subprocess.run(
            # -P: the modules beside the program must not be imported in place of installed ones
            [sys.executable, "-P", program, answer],
            input=json.dumps(request), env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            return json.loads(answer.read_text(encoding="utf-8"))
    return _diagnose(done.returncode, done.stderr, is_adapter="quantization" in request)


def _diagnose(code: int, stderr: str, *, is_adapter: bool) -> Finding:
    if code == -9 or any(sign in stderr for sign in _OUT_OF_MEMORY):
        return Finding("rewards", None, "the fresh process ran out of memory. Run `plaudit verify` when there is more.")
    lines = stderr.strip().splitlines() or [f"exit code {code}"]
    reason = next((line for line in reversed(lines) if _EXCEPTION.match(line)), lines[-1])  # some take many lines
    if is_adapter and reason.startswith("OSError"):
        return Finding("reload", None, f"the adapter's base could not be loaded: {reason}")
    if _NEEDS_GPU.search(reason):
        return Finding("reload", None, f"the model runs on a GPU alone, and the fresh process has none: {reason}")
    return Finding("reload", False, f"plain transformers cannot load or run the model: {reason}")
