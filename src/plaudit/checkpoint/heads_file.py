"""`heads.safetensors`: the members of an ensemble on one backbone, with the constants by which they are compared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plaudit.checkpoint.constants_file import read_constants_file, write_constants_file
from plaudit.errors import CheckpointError
from plaudit.uncertainty import MemberUncertainty

__all__ = ["HEADS_FILE", "SavedHeads"]

HEADS_FILE = "heads.safetensors"
_REMEDY = "Copy or save it again, or remove the file to use the mean alone."


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
        tensors = {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})
        write_constants_file(folder / HEADS_FILE, tensors, self.constants, measured_on=self.measured_on)

    @classmethod
    def read(cls, path_or_id: str | Path, **hub: Any) -> "SavedHeads | None":
        """Read the file from a folder or from the hub; return `None` where there is none.

        Args:
            path_or_id: The folder or hub id.
            **hub: `revision`, `subfolder`, `token`, ..., as for `from_pretrained`.

        Raises:
            CheckpointError: The file is cut short, or lacks its members or their constants.
        """
        found = read_constants_file(path_or_id, HEADS_FILE, ("weight",), _REMEDY, **hub)
        if found is None:
            return None
        weight, bias, constants = found.tensors["weight"], found.tensors.get("bias"), found.constants
        sizes = {name: list(tensor.shape) for name, tensor in found.tensors.items()}
        is_whole = weight.ndim == 2 and (bias is None or bias.shape == weight.shape[:1])
        if not is_whole or not isinstance(constants, MemberUncertainty) or len(constants.centers) != len(weight):
            raise CheckpointError(
                f"{found.path}: expected K members in all of its tensors, with the constants of as many, got {sizes} "
                f"and {constants}. {_REMEDY}"
            )
        return cls(weight, bias, constants, found.facts.get("measured_on", "unknown"))
