"""Safetensors files that hold a part of a model's uncertainty beside the constants by which its columns are read."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers.utils import cached_file

from plaudit.checkpoint.atomic import write_atomically
from plaudit.errors import CheckpointError, ConfigError
from plaudit.uncertainty import Uncertainty, uncertainty_from_dict

__all__ = ["ConstantsFile", "read_constants_file", "write_constants_file"]


class ConstantsFile(NamedTuple):
    """The content of a file: tensors by name, the constants, and further facts in JSON values."""

    path: str
    tensors: dict[str, torch.Tensor]
    constants: Uncertainty
    facts: dict[str, Any]


def write_constants_file(path: Path, tensors: dict[str, torch.Tensor], constants: Uncertainty, **facts: Any) -> None:
    """Write tensors, constants and facts to a file, whole or not at all."""
    about = json.dumps(facts | {"uncertainty": constants.to_dict()})
    # One entry, since safetensors writes several in an order that changes from call to call.
    write_atomically(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"about": about}))


def read_constants_file(
    path_or_id: str | Path, name: str, tensors: tuple[str, ...], remedy: str, **hub: Any
) -> ConstantsFile | None:
    """Read a file from a folder or from the hub; return `None` where there is none.

    Args:
        path_or_id: The folder or hub id.
        name: The name of the file.
        tensors: The names of the tensors that it must hold.
        remedy: What to do about a damaged file, for the message.
        **hub: `revision`, `subfolder`, `token`, ..., as for `from_pretrained`.

    Raises:
        CheckpointError: The file is cut short, or lacks a tensor or its constants.
    """
    try:
        path = cached_file(str(path_or_id), name, **hub)
    except OSError:  # there is no such file or place, or the hub cannot be reached
        return None
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
            facts = json.loads((file.metadata() or {}).get("about", "{}"))
        constants = uncertainty_from_dict(facts.pop("uncertainty", {}))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error} {remedy}") from error
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is not whole ({error}). {remedy}") from error
    if missing := [name for name in tensors if name not in found]:
        raise CheckpointError(f"{path}: expected the tensors {', '.join(tensors)}; {missing[0]} is missing. {remedy}")
    return ConstantsFile(path, found, constants, facts)
