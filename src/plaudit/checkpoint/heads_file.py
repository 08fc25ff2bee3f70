"""`heads.safetensors`: the members of an ensemble on one backbone, with the constants by which they are compared."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers.utils import cached_file

from plaudit.checkpoint.atomic import write_atomically
from plaudit.errors import CheckpointError
from plaudit.uncertainty import MemberUncertainty

__all__ = ["HEADS_FILE", "SavedHeads"]

HEADS_FILE = "heads.safetensors"


@dataclass(frozen=True)
class SavedHeads:
    """The content of `heads.safetensors`.

    Attributes:
        weight: The K heads, float32, shape [K, hidden].
        bias: Their biases, shape [K], if they have any.
        constants: Centre and scale of each member.
        measured_on: The sequences that the constants were measured on, in words.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    constants: MemberUncertainty
    measured_on: str

    def write(self, folder: Path) -> None:
        """Write the file into a model's folder, whole or not at all."""
        tensors = {
            "weight": self.weight.contiguous(),
            "center": torch.tensor(self.constants.centers, dtype=torch.float64),
            "scale": torch.tensor(self.constants.scales, dtype=torch.float64),
        }
        if self.bias is not None:
            tensors["bias"] = self.bias.contiguous()
        about = json.dumps({"reward_std": self.constants.reward_std, "measured_on": self.measured_on})
        # One entry, since safetensors writes several in an order that changes from call to call.
        write_atomically(folder / HEADS_FILE, save(tensors, {"about": about}))

    @classmethod
    def read(cls, path_or_id: str | Path, **hub: Any) -> "SavedHeads | None":
        """Read the file from a folder or from the hub; return `None` where there is none.

        Args:
            path_or_id: The folder or hub id.
            **hub: `revision`, `subfolder`, `token`, ..., as for `from_pretrained`.

        Raises:
            CheckpointError: The file is cut short, or lacks its members or their constants.
        """
        try:
            path = cached_file(str(path_or_id), HEADS_FILE, **hub)
        except OSError:  # there is no such file or place, or the hub cannot be reached
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
                about = json.loads((file.metadata() or {}).get("about", "{}"))
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(f"{path} is not whole ({error}). Copy or save it again.") from error
        missing = [name for name in ("weight", "center", "scale") if name not in tensors]
        if missing or "reward_std" not in about:
            raise CheckpointError(
                f"{path}: expected the members as `weight` with the constants `center`, `scale` and `reward_std`; "
                f"{', '.join(missing or ['reward_std'])} is missing. Save the model again, or remove the file to use "
                "the mean alone."
            )
        weight, bias = tensors["weight"], tensors.get("bias")
        lengths = {name: len(tensors[name]) for name in tensors}
        if weight.ndim != 2 or len(weight) < 2 or set(lengths.values()) != {len(weight)}:
            raise CheckpointError(f"{path}: expected two or more members in all of its tensors, got {lengths}.")
        constants = MemberUncertainty(
            tuple(tensors["center"].tolist()), tuple(tensors["scale"].tolist()), float(about["reward_std"])
        )
        return cls(weight, bias, constants, about.get("measured_on", "unknown"))
