"""`laplace.safetensors`: the posterior of a model's head, saved beside the weights that it was fitted for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plaudit.checkpoint.constants_file import read_constants_file, write_constants_file
from plaudit.checkpoint.ensemble_file import ENSEMBLE_FILE
from plaudit.checkpoint.heads_file import HEADS_FILE
from plaudit.errors import CheckpointError, ConfigError
from plaudit.uncertainty import PosteriorUncertainty

__all__ = ["LAPLACE_FILE", "SavedLaplace", "check_folder_of_one_head"]

LAPLACE_FILE = "laplace.safetensors"
_AGAIN = "Run `plaudit laplace MODEL DATA` again, or remove the file to use the rewards alone."


@dataclass(frozen=True)
class SavedLaplace:
    """The content of `laplace.safetensors`.

    Attributes:
        factor: The symmetric square root of the posterior covariance of the head, float32, shape [H, H].
        feature_mean: Mean features of the reference data, float32, shape [H].
        head: The head that the posterior was fitted for, in the precision of the model, shape [H].
        constants: Mean and standard deviation of the rewards of the reference data.
        prior_precision: The precision of the prior of the head.
        measured_on: The reference data, in words.
    """

    factor: torch.Tensor
    feature_mean: torch.Tensor
    head: torch.Tensor
    constants: PosteriorUncertainty
    prior_precision: float
    measured_on: str

    def is_of_head(self, head: torch.Tensor, dtype: torch.dtype) -> bool:
        """Return whether the posterior was fitted for a head [1, H], up to rounding to the precision of the model.

        Args:
            head: The weight of the head.
            dtype: The precision that the model was loaded in. The fit may have loaded it in another one.
        """
        if head.numel() != self.head.numel():
            return False
        coarser = max((torch.finfo(each) for each in (dtype, self.head.dtype)), key=lambda info: info.eps)
        saved, given = self.head.float(), head.detach().float().cpu().flatten()
        return torch.allclose(given, saved, rtol=coarser.eps, atol=coarser.tiny)

    def write(self, folder: str | Path) -> None:
        """Write the file into a model's folder, whole or not at all.

        Raises:
            ConfigError: The folder is not there, or holds an ensemble.
        """
        folder = Path(folder).expanduser()
        check_folder_of_one_head(folder)
        tensors = {"factor": self.factor, "feature_mean": self.feature_mean, "head": self.head}
        write_constants_file(
            folder / LAPLACE_FILE, tensors, self.constants, prior_precision=self.prior_precision,
            measured_on=self.measured_on,
        )  # fmt: skip

    @classmethod
    def read(cls, path_or_id: str | Path, **hub: Any) -> "SavedLaplace | None":
        """Read the file from a folder or from the hub; return `None` where there is none.

        Args:
            path_or_id: The folder or hub id.
            **hub: `revision`, `subfolder`, `token`, ..., as for `from_pretrained`.

        Raises:
            CheckpointError: The file is cut short, lacks a tensor or a constant, or its tensors do not fit together.
        """
        found = read_constants_file(path_or_id, LAPLACE_FILE, ("factor", "feature_mean", "head"), _AGAIN, **hub)
        if found is None:
            return None
        factor, mean, head = (found.tensors[name] for name in ("factor", "feature_mean", "head"))
        constants, facts = found.constants, found.facts
        shapes = {name: list(tensor.shape) for name, tensor in found.tensors.items()}
        if factor.shape != (len(head), len(head)) or mean.shape != head.shape or head.ndim != 1:
            raise CheckpointError(
                f"{found.path}: expected factor [H, H], feature_mean [H] and head [H], got {shapes}. {_AGAIN}"
            )
        if not isinstance(constants, PosteriorUncertainty) or "prior_precision" not in facts:
            raise CheckpointError(f"{found.path}: expected the constants of a posterior, got {constants}. {_AGAIN}")
        return cls(factor, mean, head, constants, facts["prior_precision"], facts.get("measured_on", "unknown"))


def check_folder_of_one_head(folder: Path) -> None:
    """Raise unless a posterior can be written into a folder: the folder of a model that is no ensemble.

    Raises:
        ConfigError: The folder is not there, or holds an ensemble.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"expected the folder of a reward model, since {LAPLACE_FILE} is written beside the weights, got "
            f"'{folder}', which is none. Download a model of the hub first: `hf download {folder} --local-dir FOLDER`."
        )
    for name in (HEADS_FILE, ENSEMBLE_FILE):
        if (folder / name).exists():
            raise ConfigError(
                f"'{folder}' is an ensemble ({name}), whose members say how sure its rewards are; a Laplace "
                "approximation is for a model with one head."
            )
