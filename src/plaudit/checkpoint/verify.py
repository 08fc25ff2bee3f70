"""Verification: check that a saved reward model, loaded by plain transformers in a fresh process, scores as before.

A reload takes memory, which a training run may not have left. Then the outcome is "NOT VERIFIED".
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import snapshot_download

from plaudit.checkpoint.ensemble_file import ENSEMBLE_FILE, SavedEnsemble
from plaudit.checkpoint.fingerprint import Fingerprint, probe_sequences, tolerance
from plaudit.checkpoint.fresh_process import reload_and_score
from plaudit.checkpoint.inspection import BASE_TOKENIZER, Finding, SavedModel, inspect_files
from plaudit.checkpoint.member_agreement import SavedMember, check_agreement
from plaudit.checkpoint.metadata import training_dtype, write_metadata
from plaudit.errors import CheckpointError, ModelError
from plaudit.hub import hub_or_cache, reads_hub

__all__ = ["Reload", "Verification", "verify", "verify_and_record"]

Reload = Callable[[dict[str, Any]], dict[str, Any] | Finding]

_NEEDED = ("weights", "labels", "head")  # without them a plain load fails, or makes a random head
_TRL_LOADER = "TRL's loader"
_OTHER_LOADERS = (BASE_TOKENIZER, _TRL_LOADER)  # these layers concern other programs that load an adapter's folder
_MEASURED = ("batches", "members", "rewards")
_LIBRARIES = 1 << 30  # bytes of a process with torch and transformers loaded, before any model


@dataclass(frozen=True)
class Verification:
    """The outcome of a verification.

    Attributes:
        findings: One for each layer of the contract that was checked, in order.
        difference: The largest difference of a probe's reward; `None` where no rewards could be compared.
        tolerance: The root mean square of the differences that rounding explains.
        engine: The libraries that reloaded the model, with their versions.
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
        """The findings of layers that do not hold."""
        return [finding for finding in self.findings if finding.holds is False]

    def as_json(self) -> dict[str, Any]:
        """Return the entry for `reward.json`."""
        return {
            "status": self.status,
            "largest_difference": self.difference,
            "tolerance": self.tolerance,
            "engine": self.engine,
            "remarks": [f"{each.layer}: {each.message}" for each in self.findings if not each.holds],
        }


@reads_hub("path_or_id")
def verify(path_or_id: str | Path, *, trust_remote_code: bool = False, reload: Reload | None = None) -> Verification:
    """Check a saved reward model layer by layer, reload it in a fresh process, and score its fingerprint's probes.

    The folder is not changed. The reload runs on the CPU. Folders of other libraries are checked too: without a
    fingerprint there are no rewards to compare with, and only padding is tried. A difference is measured a second time,
    by another process, before it decides. Of an ensemble of models, each member is checked so, and whether the members
    agree and have the weights that they had when the ensemble was made.

    Args:
        path_or_id: A folder, an adapter's folder or a hub id.
        trust_remote_code: Allow a model or tokenizer that ships its own code.
        reload: Loads and scores the model; `None` does so in a fresh process.

    Raises:
        CheckpointError: There is no such folder or hub id.
    """
    reload = reload or reload_and_score
    folder = _find(path_or_id)
    if (folder / ENSEMBLE_FILE).exists():
        return _verify_ensemble(folder, trust_remote_code, reload)
    saved = SavedModel(folder, trust_remote_code)
    findings = inspect_files(saved)
    nameless = saved.adapter is not None and not saved.adapter.get("base_model_name_or_path")
    lost = any(finding.holds is False and finding.layer in _NEEDED for finding in findings)
    if lost or nameless or not saved.has_tokenizer:
        return Verification(findings)
    recorded = saved.metadata.get("fingerprint")
    fingerprint = Fingerprint.from_json(recorded) if recorded else None
    lacking = _lacking_memory(saved, fingerprint)
    if lacking is not None:
        return Verification([*findings, Finding("rewards", None, lacking)])
    request = _request(saved, fingerprint)
    with hub_or_cache((saved.adapter or {}).get("base_model_name_or_path")):
        verification = _compare(findings, saved, fingerprint, reload(request))
        if any(finding.layer in _MEASURED for finding in verification.broken):
            # One wrong measurement, whatever its cause, must not fail a save.
            verification = _compare(findings, saved, fingerprint, reload(request))
    return verification


def _verify_ensemble(folder: Path, trust_remote_code: bool, reload: Reload) -> Verification:
    """Verify each member of an ensemble, and what they must have in common; the difference is the largest of theirs."""
    try:
        ensemble = SavedEnsemble.read(folder)
        assert ensemble is not None
        members = [SavedMember.read(path, trust_remote_code=trust_remote_code) for path in ensemble.members]
        ensemble.check_unchanged(members)
        check_agreement(members)
    except (CheckpointError, ModelError) as error:
        return Verification([Finding("ensemble", False, str(error))])
    message = (
        f"{len(members)} members that read text alike, with their weights of when the ensemble was made; measured on "
        f"{ensemble.measured_on}"
    )
    findings = [Finding("ensemble", True, message)]
    verified = [verify(path, trust_remote_code=trust_remote_code, reload=reload) for path in ensemble.members]
    findings += [
        replace(finding, layer=f"member {number}, {finding.layer}", message=f"{path}: {finding.message}")
        for number, (path, each) in enumerate(zip(ensemble.members, verified, strict=True), 1)
        for finding in each.findings
        if finding.layer not in _OTHER_LOADERS and (finding.layer == "rewards" or not finding.holds)
    ]  # no other program loads an ensemble
    differences = [each.difference for each in verified if each.difference is not None]
    if len(differences) < len(verified):
        return Verification(findings)
    return Verification(findings, max(differences), max(each.tolerance or 0.0 for each in verified), verified[0].engine)


def verify_and_record(folder: Path, *, trust_remote_code: bool = False, reload: Reload | None = None) -> Verification:
    """Verify a folder that was just written, and record the outcome in its `reward.json`.

    A layer that concerns only other programs loading an adapter (the base's tokenizer, TRL's loader) is recorded as a
    remark and does not fail the save: the folder itself scores as it did. The arguments are those of `verify`.

    Raises:
        CheckpointError: The rewards differ, or another layer breaks. The files are kept.
    """
    verification = verify(folder, trust_remote_code=trust_remote_code, reload=reload)
    findings = [
        replace(each, holds=each.holds or None) if each.layer in _OTHER_LOADERS else each
        for each in verification.findings
    ]
    verification = replace(verification, findings=findings)
    write_metadata(folder, SavedModel(folder).metadata | {"verification": verification.as_json()})
    if verification.status == "failed":
        reasons = "; ".join(f"{each.layer}: {each.message}" for each in verification.broken)
        raise CheckpointError(
            f"the model was saved to '{folder}', but it does not score there as it did in training. {reasons} The "
            f"files are kept. `plaudit verify {folder}` checks again; `verify_on_save=False` leaves the check out."
        )
    return verification


def _find(path_or_id: str | Path) -> Path:
    """Return the folder of a model, downloaded if it is a hub id."""
    folder = Path(path_or_id).expanduser()
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file: name the folder that it lies in.")
    if folder.is_dir():
        return folder
    try:
        patterns = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt", "*.py"]
        return Path(snapshot_download(str(path_or_id), allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = re.split(r"\n|\. ", str(error).strip())[0]  # the advice behind it does not fit
        raise CheckpointError(
            f"{path_or_id}: there is no such folder, and nothing could be downloaded ({reason})."
        ) from error


def _lacking_memory(saved: SavedModel, fingerprint: Fingerprint | None) -> str | None:
    """Return a message if a second copy of the model does not fit into memory."""
    size = getattr(torch, _dtype(saved, fingerprint), torch.float32).itemsize
    needed = saved.parameters() * size + _LIBRARIES
    free = psutil.virtual_memory().available
    if needed <= free:
        return None
    return (
        f"a reload takes about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free. Run `plaudit verify` when "
        f"there is more."
    )


def _dtype(saved: SavedModel, fingerprint: Fingerprint | None) -> str:
    """Return the precision a plain load computes in: that of training for an adapter's base, else the stored one."""
    if saved.adapter is not None:
        return training_dtype(saved.folder)
    stored = saved.config.get("dtype") or saved.config.get("torch_dtype")
    return stored or (fingerprint.dtype if fingerprint else "float32")


def _request(saved: SavedModel, fingerprint: Fingerprint | None) -> dict[str, Any]:
    """Return the arguments of `plaudit.checkpoint.reload.score`."""
    if fingerprint is None:
        sequences, ids = probe_sequences(saved.tokenizer, conversational=bool(saved.tokenizer.chat_template)), None
    else:
        sequences, ids = fingerprint.probes, fingerprint.ids
    path, code = str(saved.folder.resolve()), saved.trust_remote_code
    request: dict[str, Any] = {"path": path, "sequences": sequences, "ids": ids, "trust_remote_code": code}
    if saved.members_file is not None:
        request["heads"] = str(saved.members_file.resolve())
    if saved.adapter is not None:
        request |= {"dtype": _dtype(saved, fingerprint), "quantization": saved.metadata.get("quantization")}
    return request


def _compare(
    findings: list[Finding], saved: SavedModel, fingerprint: Fingerprint | None, answer: dict[str, Any] | Finding
) -> Verification:
    """Add the findings of the fresh process to those of the files: batches, TRL's loader, rendering and rewards."""
    if isinstance(answer, Finding):
        return Verification([*findings, answer])
    findings = [*findings, _batches(saved, answer)]
    if answer.get("members") is not None:
        findings.append(_members(fingerprint, answer))
    if answer["as_trl"] is not None:
        findings.append(_trl_loader(answer))
    if fingerprint is None:
        remark = "there is no reward.json with a fingerprint, so there are no rewards to compare with."
        return Verification([*findings, Finding("rewards", None, remark)], engine=answer["engine"])
    findings.append(_rendering(saved, fingerprint, answer))
    difference, mean = _differences(fingerprint.rewards, answer["alone"])
    allowed = tolerance(fingerprint.rewards, fingerprint.dtype, answer["dtype"])
    message = (
        f"{len(fingerprint.rewards)} probes, scored from {min(fingerprint.rewards):+.3f} to "
        f"{max(fingerprint.rewards):+.3f}, differ by up to {difference:.1e} (root mean square {mean:.1e}; rounding in "
        f"{answer['dtype']} explains {allowed:.1e})"
    )
    holds = mean <= allowed  # False for NaN
    if not holds and all(finding.holds is not False for finding in findings):  # no other layer names the cause
        message += ". The head is lost or random, the adapter is on another base, or weights have changed."
    findings.append(Finding("rewards", holds, message))
    return Verification(findings, difference, allowed, answer["engine"])


def _differences(rewards: list[float], others: list[float]) -> tuple[float, float]:
    """Return the largest difference and the root mean square, in which one unlucky rounding weighs less; NaN if any."""
    sizes = (torch.tensor(rewards, dtype=torch.float64) - torch.tensor(others, dtype=torch.float64)).abs()
    return sizes.max().item(), sizes.square().mean().sqrt().item()


def _batches(saved: SavedModel, answer: dict[str, Any]) -> Finding:
    if answer["batched"] is None:
        return Finding("batches", False, "the model names no pad token, so plain transformers refuses batches.")
    difference, mean = _differences(answer["alone"], answer["batched"])
    if mean <= tolerance(answer["alone"], answer["dtype"]):
        return Finding("batches", True, f"a padded batch scores as each sequence alone, to {difference:.1e}")
    message = f"rewards change by up to {difference:.2g} when sequences are padded: the wrong token is read."
    if "num_virtual_tokens" in (saved.adapter or {}):  # plain PEFT finds no pad token among embeddings
        return Finding("batches", None, f"{message} With prompt tuning, plain PEFT scores one sequence at a time.")
    return Finding("batches", False, message)


def _members(fingerprint: Fingerprint | None, answer: dict[str, Any]) -> Finding:
    """Compare the mean of the members with the model's head, and each member with its rewards in training."""
    alone, members = answer["alone"], answer["members"]
    _, mean = _differences(alone, [sum(each) / len(each) for each in members])
    if not mean <= tolerance(alone, answer["dtype"]):
        message = f"their mean differs from the model's rewards by {mean:.2g}: members and weights are of two models."
        return Finding("members", False, message)
    if fingerprint is None or fingerprint.members is None:
        return Finding("members", True, f"the mean of {len(members[0])} members scores as the model does")
    recorded, found = ([reward for each in rewards for reward in each] for rewards in (fingerprint.members, members))
    difference, mean = _differences(recorded, found)
    if not mean <= tolerance(recorded, fingerprint.dtype, answer["dtype"]):
        return Finding("members", False, f"members score otherwise than in training, by up to {difference:.2g}.")
    return Finding("members", True, f"{len(members[0])} members score as in training, and their mean as the model")


def _trl_loader(answer: dict[str, Any]) -> Finding:
    """Compare an adapter's rewards with those of `AutoModelForSequenceClassification`, which TRL loads it with."""
    as_trl = answer["as_trl"]
    if isinstance(as_trl, str):
        message = f"transformers cannot load the adapter without PEFT's own call, as TRL does ({as_trl})."
        return Finding(_TRL_LOADER, False, message)
    difference, mean = _differences(answer["alone"], as_trl["rewards"])
    if mean <= tolerance(answer["alone"], answer["dtype"], as_trl["dtype"]):
        return Finding(_TRL_LOADER, True, f"the same rewards as through PEFT, to {difference:.1e}")
    message = (
        f"rewards change by up to {difference:.2g} where transformers loads the adapter without PEFT's own call, as "
        f"TRL does: it does not quantise the base, and leaves some weights out (DoRA's magnitudes). Merge the adapter "
        f"first (`plaudit merge`)."
    )
    return Finding(_TRL_LOADER, False, message)


def _rendering(saved: SavedModel, fingerprint: Fingerprint, answer: dict[str, Any]) -> Finding:
    if answer["rendered"] == fingerprint.ids:
        return Finding("rendering", True, "the probes become the same token ids")
    if "strftime_now" in str(saved.tokenizer.chat_template):
        return Finding("rendering", None, "the chat template writes today's date: rewards change from day to day.")
    number = next(n for n, ids in enumerate(answer["rendered"]) if ids != fingerprint.ids[n])
    message = f"probe {number} becomes other token ids than in training: the tokenizer or its template has changed."
    return Finding("rendering", False, message)
