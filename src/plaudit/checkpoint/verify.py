"""Verification: whether a saved reward model scores, loaded by plain transformers in a fresh process, as it did before.

Reloading takes memory, which a training run may not have left. Then nothing is proven, and the outcome says so.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import snapshot_download
from transformers import PreTrainedTokenizerBase

from plaudit.checkpoint import reload
from plaudit.checkpoint.fingerprint import Fingerprint, probe_sequences
from plaudit.checkpoint.inspection import BASE_TOKENIZER, Finding, SavedModel, inspect_files
from plaudit.checkpoint.metadata import training_dtype, write_metadata
from plaudit.errors import CheckpointError

__all__ = ["Verification", "verify", "verify_and_record"]

_NEEDED = ("weights", "labels", "head")  # without them a plain load fails, or draws something at random
_INTEGRATED = "TRL's loader"
_OF_OTHERS = (BASE_TOKENIZER, _INTEGRATED)  # they break for some who load an adapter, and not for those who know it
_LIBRARIES = 1 << 30  # bytes that a process takes with torch and transformers loaded, before any model
_OUT_OF_MEMORY = ("MemoryError", "can't allocate memory", "Cannot allocate memory")
_EXCEPTION = re.compile(r"[\w.]+(Error|Exception)\b")
_NEEDS_GPU = re.compile(r"GPU (or XPU )?(is required|is needed|found)|requires a GPU")  # some quantised bases
# What would make a fresh process take itself for one of several, or look for a device that training has filled.
_OF_LAUNCHERS = (
    "ACCELERATE_", "DEEPSPEED_", "FSDP_", "GROUP_", "LOCAL_", "MASTER_", "RANK", "ROLE_", "TORCHELASTIC_", "WORLD_",
)  # fmt: skip


@dataclass(frozen=True)
class Verification:
    """What came of it.

    Attributes:
        findings: The layers looked at, in order.
        difference: The largest difference of a probe's rewards; `None` where nothing could be compared.
        tolerance: What rounding explains of the root mean square of all differences.
        engine: What it was loaded with.
    """

    findings: list[Finding]
    difference: float | None = None
    tolerance: float | None = None
    engine: str | None = None

    @property
    def status(self) -> str:
        """One of "failed" (a layer breaks), "NOT VERIFIED" (no rewards could be compared) and "verified"."""
        if self.broken:
            return "failed"
        return "verified" if self.difference is not None else "NOT VERIFIED"

    @property
    def broken(self) -> list[Finding]:
        """The layers that do not hold."""
        return [finding for finding in self.findings if finding.holds is False]

    def as_json(self) -> dict[str, Any]:
        """What `reward.json` holds."""
        open_questions = [f"{each.layer}: {each.message}" for each in self.findings if not each.holds]
        return {
            "status": self.status,
            "largest_difference": self.difference,
            "tolerance": self.tolerance,
            "engine": self.engine,
            "remarks": open_questions,
        }


def verify(path_or_id: str | Path, *, trust_remote_code: bool = False) -> Verification:
    """Look at a saved reward model layer by layer, reload it in a fresh process, and score its fingerprint's probes.

    It changes nothing, runs on the CPU, and works on folders of other libraries too; without a fingerprint there is
    nothing to compare with, and only padding is tried.

    Args:
        path_or_id: A folder, an adapter's folder or a hub id.
        trust_remote_code: Allow a model or tokenizer that ships its own code.

    Raises:
        CheckpointError: There is nothing there.
    """
    folder = Path(path_or_id).expanduser()
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file: name the folder that it lies in.")
    if not folder.is_dir():
        folder = _download(str(path_or_id))
    saved = SavedModel(folder, trust_remote_code)
    findings = inspect_files(saved)
    nameless = saved.adapter is not None and not saved.adapter.get("base_model_name_or_path")
    lost = any(finding.holds is False and finding.layer in _NEEDED for finding in findings)
    if lost or nameless or not saved.has_tokenizer:
        return Verification(findings)
    described = saved.description.get("fingerprint")
    fingerprint = Fingerprint.from_json(described) if described else None
    lacking = _lacking_memory(saved, fingerprint)
    if lacking:
        return Verification([*findings, Finding("rewards", None, lacking)])
    answer = _ask(_request(saved, fingerprint))
    if isinstance(answer, Finding):
        return Verification([*findings, answer])
    return _compare(findings, saved, fingerprint, answer)


def verify_and_record(folder: Path, *, trust_remote_code: bool = False) -> Verification:
    """Verify a folder that was just written, and say in its `reward.json` what came of it.

    That TRL would load an adapter otherwise is recorded and no failure: the folder itself scores as it did.

    Raises:
        CheckpointError: The rewards differ, or a layer breaks. The files stay.
    """
    found = verify(folder, trust_remote_code=trust_remote_code)
    verification = Verification(
        [
            Finding(each.layer, each.holds or None, each.message) if each.layer in _OF_OTHERS else each
            for each in found.findings
        ],
        found.difference, found.tolerance, found.engine,
    )  # fmt: skip
    description = SavedModel(folder).description
    write_metadata(folder, description | {"verification": verification.as_json()})
    if verification.status == "failed":
        reasons = "; ".join(f"{each.layer}: {each.message}" for each in verification.broken)
        raise CheckpointError(
            f"the model was saved to '{folder}', but it does not score there as it did in training. {reasons} The "
            f"files are kept; `plaudit verify {folder}` looks again, `verify_on_save=False` leaves this out."
        )
    return verification


def _download(name: str) -> Path:
    try:
        return Path(
            snapshot_download(name, allow_patterns=["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt", "*.py"])
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{name}: there is no such folder, and nothing could be downloaded ({reason})."
        ) from error


def _dtype_of(saved: SavedModel, fingerprint: Fingerprint | None) -> str:
    """What a plain load computes in: an adapter's base is told, a whole model says it itself."""
    if saved.adapter is not None:
        return training_dtype(saved.folder)
    stored = saved.config.get("dtype") or saved.config.get("torch_dtype")
    return stored or (fingerprint.dtype if fingerprint else "float32")


def _lacking_memory(saved: SavedModel, fingerprint: Fingerprint | None) -> str | None:
    """What to say if the model does not fit beside what runs now."""
    size = getattr(torch, _dtype_of(saved, fingerprint), torch.float32).itemsize
    needed = saved.parameters() * size + _LIBRARIES
    free = psutil.virtual_memory().available
    if needed <= free:
        return None
    return (
        f"a reload takes about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free. Run `plaudit verify` when "
        f"there is more."
    )


def _request(saved: SavedModel, fingerprint: Fingerprint | None) -> dict[str, Any]:
    request: dict[str, Any] = {
        "path": str(saved.folder.resolve()),
        "sequences": fingerprint.probes if fingerprint else _any_probes(saved.tokenizer),
        "ids": fingerprint.ids if fingerprint else None,
        "trust_remote_code": saved.trust_remote_code,
    }
    if saved.adapter is not None:
        quantization = saved.description.get("quantization")
        request |= {"dtype": _dtype_of(saved, fingerprint), "quantization": quantization}
    return request


def _any_probes(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    return probe_sequences(tokenizer, conversational=bool(tokenizer.chat_template))


def _ask(request: dict[str, Any]) -> dict[str, Any] | Finding:
    """The answer of a fresh process, or what went wrong there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OF_LAUNCHERS)}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch, "answer.json")
        done = subprocess.run(
            # -P: the modules beside it must not pass for installed ones
            [sys.executable, "-P", reload.__file__, answer],
            input=json.dumps(request), env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            return json.loads(answer.read_text(encoding="utf-8"))
    if done.returncode == -9 or any(sign in done.stderr for sign in _OUT_OF_MEMORY):
        return Finding("rewards", None, "the fresh process ran out of memory. Run `plaudit verify` when there is more.")
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    reason = next((line for line in reversed(lines) if _EXCEPTION.match(line)), lines[-1])  # some take many lines
    if "quantization" in request and reason.startswith("OSError"):
        return Finding("reload", None, f"the adapter's base could not be loaded: {reason}")
    if _NEEDS_GPU.search(reason):
        return Finding("reload", None, f"it runs on a GPU alone, and the fresh process has none: {reason}")
    return Finding("reload", False, f"plain transformers cannot load or run it: {reason}")


def _compare(
    findings: list[Finding], saved: SavedModel, fingerprint: Fingerprint | None, answer: dict[str, Any]
) -> Verification:
    """Compare rendering, padding and rewards of the fresh process with the fingerprint."""
    own = Fingerprint([], [], answer["alone"], answer["dtype"])
    tolerance = (fingerprint or own).tolerance(answer["dtype"])
    findings = [*findings, _batching(saved, answer, own.tolerance(answer["dtype"]))]
    findings += _through_transformers(answer, own)
    if fingerprint is None:
        remark = "there is no reward.json with a fingerprint: nothing says what the model scored before."
        return Verification([*findings, Finding("rewards", None, remark)], engine=answer["engine"])
    findings.append(_rendering(saved, fingerprint, answer))
    difference, mean = _differences(fingerprint.rewards, answer["alone"])
    low, high = min(fingerprint.rewards), max(fingerprint.rewards)
    said = (
        f"{len(fingerprint.rewards)} probes, from {low:+.3f} to {high:+.3f}, differ by up to {difference:.1e} "
        f"({mean:.1e} in the mean square; {answer['dtype']} explains {tolerance:.1e})"
    )
    if not mean <= tolerance:  # also where it is NaN
        others = all(finding.holds is not False for finding in findings)  # else the cause stands there
        said += ". What was saved is not what was scored"
        said += ": a lost or random head, an adapter on another base, changed weights." if others else "."
    findings.append(Finding("rewards", mean <= tolerance, said))
    return Verification(findings, difference, tolerance, answer["engine"])


def _differences(rewards: list[float], others: list[float]) -> tuple[float, float]:
    """The largest, and the root of their mean square, in which one unlucky rounding weighs less; NaN if one is."""
    sizes = (torch.tensor(rewards, dtype=torch.float64) - torch.tensor(others, dtype=torch.float64)).abs()
    return sizes.max().item(), sizes.square().mean().sqrt().item()


def _batching(saved: SavedModel, answer: dict[str, Any], tolerance: float) -> Finding:
    if answer["batched"] is None:
        return Finding("batches", False, "the model names no pad token, so plain transformers refuses batches.")
    difference, mean = _differences(answer["alone"], answer["batched"])
    if not mean <= tolerance:
        message = f"rewards change by up to {difference:.2g} when sequences are padded: the wrong token is read."
        if "num_virtual_tokens" in (saved.adapter or {}):  # plain PEFT finds no pad among embeddings
            return Finding("batches", None, f"{message} Of prompt tuning plain PEFT scores one sequence at a time.")
        return Finding("batches", False, message)
    return Finding("batches", True, f"padded as alone, to {difference:.1e}")


def _through_transformers(answer: dict[str, Any], own: Fingerprint) -> list[Finding]:
    """Whether an adapter scores the same when `AutoModelForSequenceClassification` loads it, as in TRL."""
    if answer["integrated"] is None:
        return []
    if isinstance(answer["integrated"], str):
        message = f"transformers refuses the adapter without PEFT's own call, as TRL loads it ({answer['integrated']})."
        return [Finding(_INTEGRATED, False, message)]
    difference, mean = _differences(answer["alone"], answer["integrated"]["rewards"])
    if mean <= own.tolerance(answer["integrated"]["dtype"]):
        return [Finding(_INTEGRATED, True, f"as through PEFT, to {difference:.1e}")]
    message = (
        f"rewards change by up to {difference:.2g} where transformers loads the adapter without PEFT's own call, as "
        f"TRL does: it does not quantise the base, and leaves some weights out (DoRA's magnitudes). Merge it first "
        f"(`plaudit merge`)."
    )
    return [Finding(_INTEGRATED, False, message)]


def _rendering(saved: SavedModel, fingerprint: Fingerprint, answer: dict[str, Any]) -> Finding:
    if answer["rendered"] == fingerprint.ids:
        return Finding("rendering", True, "the probes become the same token ids")
    if "strftime_now" in str(saved.tokenizer.chat_template):
        return Finding("rendering", None, "the chat template writes today's date: rewards change from day to day.")
    number = next(n for n, ids in enumerate(answer["rendered"]) if ids != fingerprint.ids[n])
    return Finding(
        "rendering", False,
        f"probe {number} becomes other token ids than in training: the tokenizer or its template has changed.",
    )  # fmt: skip
