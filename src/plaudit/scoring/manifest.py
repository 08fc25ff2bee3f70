"""The properties that decide the rewards of a scoring job, compared so that no output mixes two inputs or models."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from plaudit.checkpoint.ensemble_file import SavedEnsemble
from plaudit.checkpoint.metadata import METADATA_FILE, fingerprint_digest, read_metadata
from plaudit.data.reader import Source
from plaudit.hub import reads_hub
from plaudit.scoring.remote_model import RemoteRewardModel
from plaudit.scoring.server_connection import is_server_url
from plaudit.scoring.worker import ScoringConfig

__all__ = ["Manifest", "differences", "input_manifest", "job_manifest", "model_manifest"]

# By part ("input", "model", "options"), the properties of the part.
Manifest = dict[str, dict[str, Any]]

_MODEL_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py")


def job_manifest(source: Source, config: ScoringConfig) -> Manifest:
    """Return the properties that two starts of one job must have in common; options by their names in the command."""
    of_job: dict[str, Any] = {"device": config.device, "threads": config.threads, "normalize": config.normalize}
    # Jobs of versions without aggregates go on.
    of_job |= {} if config.aggregate == "mean" else {"aggregate": config.aggregate, "k": config.k}
    of_model = {name: value for name, value in config.model_options.items() if name != "trust_remote_code"}
    options = of_job | asdict(config.columns) | of_model | {"batch_rows": config.chunk_rows}
    return {"input": input_manifest(source), "model": model_manifest(config.model), "options": options}


def input_manifest(source: Source) -> dict[str, Any]:
    """Return the properties that tell an input from another: sizes and times of its files, or its commit on the hub."""
    selection = {"config": source.config, "split": source.split}
    local = Path(source.path).expanduser()
    if not local.exists():
        return {"path": source.path, "commit": _commit(source.path, "dataset")} | selection
    files = [local] if local.is_file() else sorted(path for path in local.rglob("*") if path.is_file())
    return {"path": str(local.resolve()), **_state(files)} | selection


def model_manifest(path: str) -> dict[str, Any]:
    """Return the properties that tell a model from another: fingerprint, sizes and times of its files, or its commit.

    The files of an adapter include those of its base, if that is a folder, and an ensemble has its members. A model
    behind a server is known by what the server says of its weights, whatever its address.
    """
    if is_server_url(path):
        info = RemoteRewardModel(path).info()
        return {name: info.get(name) for name in ("name", "fingerprint", "weight_version", "dtype")}
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return {"path": path, "commit": _commit(path, "model")}
    if ensemble := SavedEnsemble.read(folder):
        members = [model_manifest(member) for member in ensemble.members]
        return {"path": str(folder.resolve()), "members": members, **_state([ensemble.file])}
    adapter = folder / "adapter_config.json"
    base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path") if adapter.exists() else None
    folders = [folder, Path(base)] if base and Path(base).is_dir() else [folder]
    # `reward.json` is written anew whenever the model is verified.
    found = (file for each in folders for pattern in _MODEL_FILES for file in each.glob(pattern))
    files = sorted(file for file in found if file.name != METADATA_FILE)
    fingerprint = fingerprint_digest(read_metadata(folder).get("fingerprint"))
    return {"path": str(folder.resolve()), "fingerprint": fingerprint, **_state(files)}


def differences(before: Manifest, now: Manifest) -> list[str]:
    """Return each difference in a few words, such as "options: max_length was None, is 9".

    A commit of `None` equals any commit, since the hub could not be reached.
    """
    changes = []
    for part, values in before.items():
        for name in sorted({*values, *now[part]}):
            old, new = values.get(name), now[part].get(name)
            if old != new and not (name == "commit" and None in (old, new)):
                changes.append(f"{part}: {name} was {old}, is {new}")
    return changes


def _state(files: list[Path]) -> dict[str, Any]:
    states = [(file.resolve(), file.stat()) for file in files]
    lines = (f"{path} {state.st_size} {state.st_mtime_ns}" for path, state in states)
    return {"bytes": sum(state.st_size for _, state in states), "files": _digest(lines)}


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@reads_hub("name")
def _commit(name: str, kind: str) -> str | None:
    try:
        return HfApi().repo_info(name, repo_type=kind).sha
    except Exception:  # offline, or no such name, for which loading has the better error
        return None
