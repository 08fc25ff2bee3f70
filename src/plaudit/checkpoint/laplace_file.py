"""`laplace.safetensors`: the posterior of a model's head, saved beside the weights that it was fitted for."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers.utils import cached_file

from plaudit.checkpoint.atomic import write_atomically
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
        constants = {"reward_mean": self.constants.reward_mean, "reward_std": self.constants.reward_std}
        about = json.dumps(constants | {"prior_precision": self.prior_precision, "measured_on": self.measured_on})
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"about": about})
        write_atomically(folder / LAPLACE_FILE, content)

    @classmethod
    def read(cls, path_or_id: str | Path, **hub: Any) -> "SavedLaplace | None":
        """Read the file from a folder or from the hub; return `None` where there is none.

        Args:
            path_or_id: The folder or hub id.
            **hub: `revision`, `subfolder`, `token`, ..., as for `from_pretrained`.

        Raises:
            CheckpointError: The file is cut short, lacks a tensor or a constant, or its tensors do not fit together.
        """
        try:
            path = cached_file(str(path_or_id), LAPLACE_FILE, **hub)
        except OSError:  # there is no such file or place, or the hub cannot be reached
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
                about = json.loads((file.metadata() or {}).get("about", "{}"))
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(f"{path} is not whole ({error}). {_AGAIN}") from error
        expected = ("factor", "feature_mean", "head", "reward_mean", "reward_std", "prior_precision")
        if missing := [name for name in expected if name not in tensors and name not in about]:
            raise CheckpointError(f"{path}: expected the posterior of a head; {missing[0]} is missing. {_AGAIN}")
        factor, mean, head = tensors["factor"], tensors["feature_mean"], tensors["head"]
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        if factor.shape != (len(head), len(head)) or mean.shape != head.shape or head.ndim != 1:
            raise CheckpointError(
                f"{path}: expected factor [H, H], feature_mean [H] and head [H], got {shapes}. {_AGAIN}"
            )
        constants = PosteriorUncertainty(float(about["reward_mean"]), float(about["reward_std"]))
        precision, measured_on = float(about["prior_precision"]), about.get("measured_on", "unknown")
        return cls(factor, mean, head, constants, precision, measured_on)


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
    for name in (HEADS_FILE, "ensemble.json"):
        if (folder / name).exists():
            raise ConfigError(
                f"'{folder}' is an ensemble ({name}), whose members say how sure its rewards are; a Laplace "
                "approximation is for a model with one head."
            )
