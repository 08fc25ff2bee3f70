"""Ensembles of several saved models: loaded behind one `RewardModel`, and written as a folder that names them."""

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import find_adapter_config_file

from plaudit.checkpoint.atomic import new_folder, staged_folder
from plaudit.checkpoint.ensemble_file import ENSEMBLE_FILE, SavedEnsemble
from plaudit.checkpoint.member_agreement import SavedMember, check_agreement
from plaudit.checkpoint.metadata import fingerprint_digest, training_dtype
from plaudit.data.formats import TextOrChat
from plaudit.engine import ScoringEngine
from plaudit.errors import ConfigError
from plaudit.hub import reads_hub
from plaudit.models.load import ADAPTER_HUB_OPTIONS
from plaudit.models.saved_adapter import SavedAdapter
from plaudit.scoring.ensemble_engine import EnsembleEngine
from plaudit.scoring.reward_model import RewardModel
from plaudit.uncertainty import MemberUncertainty, UnmeasuredMembers

__all__ = ["load_ensemble", "save_ensemble"]

_OF_THE_ENSEMBLE = ("scale", "temperature", "trained_on", "uncertainty")  # options that no single member takes


@reads_hub("members")
def load_ensemble(members: Sequence[str | Path], *, saved: SavedEnsemble | None = None, **options: Any) -> RewardModel:
    """Load several reward models as one, whose reward is the mean of theirs.

    Adapters on one base share the loaded base. A member that is an ensemble on one backbone itself counts as its mean.

    Args:
        members: Folders, adapters or hub ids, at least two.
        saved: The `ensemble.json` that names the members, for its constants. Without it, each member is centred and
            scaled by the mean and standard deviation that its training run measured, and a standard deviation is in the
            mean of their units, which is the unit of the mean reward if the members agree.
        **options: Those of `RewardModel.from_pretrained`, the same for all members. `scale`, `temperature`,
            `trained_on` and `uncertainty` are those of the ensemble.

    Raises:
        ConfigError: There are fewer than two members, one is named twice or is an ensemble of models itself.
        ModelError: Members read text in two ways, or one cannot be loaded.
        CheckpointError: A member has changed since the ensemble was written.
    """
    paths = [os.path.expanduser(path) for path in members]
    read = _read_members(paths, options)
    if saved is not None:
        saved.check_unchanged(read)
    given = {name: options.pop(name) for name in _OF_THE_ENSEMBLE if name in options}
    loaded, places = _load_members(paths, options)
    ensemble = loaded[0]
    engines = [each.engine for each in loaded if isinstance(each.engine, ScoringEngine)]  # all: none is an ensemble
    ensemble.engine = EnsembleEngine(engines, places)
    lengths = [each.max_length for each in loaded if each.max_length is not None]
    ensemble.max_length = min(lengths, default=None)
    constants = _constants_of_training(read) if saved is None else saved.constants
    ensemble.uncertainty = given.get("uncertainty", constants)
    scale = float(np.mean(constants.centers)), constants.reward_std
    ensemble.scale = given.get("scale", scale if constants.is_measured else None)
    ensemble.temperature = given.get("temperature")
    forms = [each.rendering["sequences"] for each in read if "sequences" in each.rendering]
    ensemble.trained_on = given.get("trained_on", next(iter(forms), None))
    ensemble.name = ", ".join(paths)
    digests = [each.digest for each in read]
    ensemble.fingerprint = None if None in digests else fingerprint_digest([digests, constants.to_dict()])
    return ensemble


def _read_members(paths: list[str], options: dict[str, Any]) -> list[SavedMember]:
    """Read and compare the members before any weights are loaded."""
    if len(paths) < 2:
        raise ConfigError(f"expected two or more members of an ensemble, got {len(paths)}.")
    real = [os.path.realpath(path) if Path(path).is_dir() else path for path in paths]
    if twice := [path for path, place in zip(paths, real, strict=True) if real.count(place) > 1]:
        raise ConfigError(f"{twice[0]} is named twice: a member has no disagreement with itself. Name each once.")
    hub = _hub_options(options)
    for path in paths:
        if SavedEnsemble.read(path, **hub) is not None:
            raise ConfigError(
                f"{path} is an ensemble of several models itself. Name the members in its {ENSEMBLE_FILE}."
            )
    code = bool(options.get("trust_remote_code", False))
    read = [SavedMember.read(path, trust_remote_code=code, **hub) for path in paths]
    check_agreement(read)
    return read


def _hub_options(options: dict[str, Any]) -> dict[str, Any]:
    given = options.get("model_init_kwargs") or {}
    return {name: given[name] for name in ADAPTER_HUB_OPTIONS if name in given}


def _load_members(paths: list[str], options: dict[str, Any]) -> tuple[list[RewardModel], list[tuple[int, str | None]]]:
    """Load the models, adapters on one base together; return them, and for each member its model and its adapter."""
    hub = _hub_options(options)
    loaded: list[RewardModel] = []
    places: list[tuple[int, str | None]] = []
    numbers: dict[Any, int] = {}  # of the loaded models that adapters can share
    for path in paths:
        adapter, key = None, None
        if find_adapter_config_file(path, **hub) is not None:
            adapter = SavedAdapter.read(path, **hub)
            key = adapter.shareable_base and (*adapter.shareable_base, training_dtype(path, **hub))
        if adapter is not None and key in numbers:
            name = f"member_{len(places)}"
            adapter.add_to(loaded[numbers[key]].engine.model, name)
            places.append((numbers[key], name))
            continue
        if key is not None:
            numbers[key] = len(loaded)
        places.append((len(loaded), None if key is None else "default"))  # the name that PEFT gives the first
        loaded.append(RewardModel.from_pretrained(path, uncertainty=None, **options))
    return loaded, places


def _constants_of_training(members: list[SavedMember]) -> MemberUncertainty:
    """Return the constants that the training runs of the members measured, each on its own data."""
    scales = []
    for each in members:
        if each.scale is None:
            placeholders = [1.0] * len(members)
            return UnmeasuredMembers(tuple(placeholders), tuple(placeholders), 1.0, lacking=each.path)
        scales.append(each.scale)
    centers, stds = zip(*scales, strict=True)
    return MemberUncertainty(centers, stds, reward_std=float(np.mean(stds)))


@reads_hub("members")
def save_ensemble(
    members: Sequence[str | Path],
    output: str | Path,
    sequences: Iterable[TextOrChat],
    *,
    template_options: Iterable[dict[str, Any]] | None = None,
    measured_on: str | None = None,
    copy: bool = False,
    **options: Any,
) -> SavedEnsemble:
    """Write a folder that `RewardModel.from_pretrained` loads as the ensemble of its members.

    Args:
        members: Folders, adapters or hub ids, at least two.
        output: The folder to write; new or empty. It names the members by paths relative to itself.
        sequences: The reference set: N texts or conversations, on which all members are centred and scaled.
        template_options: N dicts of keyword arguments for the chat template, if any.
        measured_on: The reference set in words; "N sequences" if `None`.
        copy: Put copies of the members that are folders into `output`. The base of an adapter is not copied.
        **options: Those of `RewardModel.from_pretrained`.

    Raises:
        ConfigError: `output` is not empty, there are fewer than two reference sequences, or as for `load_ensemble`.
        ModelError: As for `load_ensemble`.
    """
    output, sequences = new_folder(output), list(sequences)
    if len(sequences) < 2:
        raise ConfigError(f"expected two or more reference sequences to measure the members on, got {len(sequences)}.")
    paths = [os.path.expanduser(path) for path in members]
    read = _read_members(paths, options)
    rewards = load_ensemble(paths, **options).score(sequences, options=template_options, return_members=True)
    with staged_folder(output) as folder:
        if copy:
            paths = [_copy(path, number, folder, output) for number, path in enumerate(paths, 1)]
        saved = SavedEnsemble(
            output / ENSEMBLE_FILE, tuple(paths), tuple(each.digest for each in read),
            MemberUncertainty.measure(rewards), measured_on or f"{len(sequences)} sequences",
        )  # fmt: skip
        saved.write(folder)
    return saved


def _copy(path: str, number: int, folder: Path, output: Path) -> str:
    """Copy a member into the folder that is being written, and return the place where it will lie; keep a hub id."""
    if not Path(path).is_dir():
        return path
    name = f"member-{number}"
    shutil.copytree(path, folder / name, ignore=shutil.ignore_patterns("checkpoint-*", "_*", "runs"))
    return str(output.absolute() / name)
