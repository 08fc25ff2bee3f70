"""The head of a model with a Gaussian posterior: beside the reward, its standard deviation and samples of it."""

import torch
from torch import nn

__all__ = ["HeadFeatures", "LaplaceHead"]


class HeadFeatures(nn.Module):
    """Columns that are the features at the input of the head, from which a posterior is fitted.

    Args:
        num_features: The number H of features.

    Attributes:
        num_columns: 1 + H, the reward and the features.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_columns = 1 + num_features

    def forward(self, features: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
        """Map features [..., H] and rewards [..., 1] to [..., 1 + H], the reward first."""
        return torch.cat([rewards, features], -1)


class LaplaceHead(nn.Module):
    """Columns that a Gaussian posterior of the head gives: the standard deviation of a reward, and samples of it.

    The head w has the covariance L L^T. A comparison does not change with the zero of the rewards, so data of
    comparisons leave it open, and the variance of a single reward is taken for centred features: the standard deviation
    is |L^T (features - mean)|, and a sample is reward + (L z)^T (features - mean) with z standard normal. The samples
    come in pairs z and -z (antithetic sampling), so that their mean is the reward itself.

    Args:
        factor: L, shape [H, H].
        feature_mean: Mean features of the reference data, shape [H].
        num_samples: The number K of samples, even: the same heads for all sequences and in all processes.

    Attributes:
        num_columns: 2 + K, the reward, its standard deviation and the samples.
    """

    factor: torch.Tensor
    feature_mean: torch.Tensor
    normals: torch.Tensor

    def __init__(self, factor: torch.Tensor, feature_mean: torch.Tensor, num_samples: int) -> None:
        super().__init__()
        half = torch.randn(len(factor), num_samples // 2, generator=torch.Generator().manual_seed(0))
        buffers = {"factor": factor, "feature_mean": feature_mean, "normals": torch.cat([half, -half], 1)}
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor.detach().float(), persistent=False)
        self.num_columns = 2 + num_samples

    def forward(self, features: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
        """Map features [..., H] and rewards [..., 1] to [..., 2 + K]: reward, standard deviation, samples."""
        whitened = (features - self.feature_mean) @ self.factor  # [..., H]
        samples = rewards + whitened @ self.normals  # [..., K]
        return torch.cat([rewards, whitened.norm(dim=-1, keepdim=True), samples], -1)
