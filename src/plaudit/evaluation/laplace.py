"""A last-layer Laplace approximation: the posterior of the head of a reward model that was trained with one head."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit
from tqdm.auto import tqdm

from plaudit.errors import DataError, ModelError
from plaudit.evaluation.evaluate import load_rows
from plaudit.evaluation.preference_data import PreferenceData, read_preferences
from plaudit.uncertainty import PosteriorUncertainty

if TYPE_CHECKING:
    from plaudit.checkpoint.laplace_file import SavedLaplace
    from plaudit.scoring.reward_model import RewardModel

__all__ = ["HeadPosterior", "LaplaceFit", "bradley_terry_hessian", "fit_laplace", "head_posterior"]

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LaplaceFit:
    """A fitted posterior, and what a report says of it.

    Attributes:
        posterior: The posterior; its method `write` saves it into the folder of the model.
        comparisons: Number of comparisons that it was fitted to.
        split: The split that was loaded; `None` for rows that were passed in.
        well_determined: Number of directions of the head that the data determine rather than the prior (MacKay's
            gamma), between 0 and the number of features.
    """

    posterior: "SavedLaplace"
    comparisons: int
    split: str | None
    well_determined: float


class HeadPosterior(NamedTuple):
    """The Gaussian posterior of a head around its weight."""

    factor: Array  # [H, H], symmetric; its square is the covariance
    prior_precision: float
    well_determined: float


def bradley_terry_hessian(differences: Array, margins: Array, weights: Array) -> Array:
    """Return the Hessian [H, H] of the Bradley-Terry loss of C comparisons at the head.

    The Hessian is `sum_c weight_c p_c (1 - p_c) d_c d_c^T` with `p_c = sigmoid(margin_c)`, whatever the labels.

    Args:
        differences: Features of the better response minus those of the worse one (d), shape [C, H].
        margins: Rewards of the better response minus those of the worse one, shape [C].
        weights: Weights of the comparisons, shape [C].
    """
    scaled = differences * np.sqrt(weights * expit(margins) * expit(-margins))[:, None]
    return scaled.T @ scaled


def head_posterior(hessian: Array, head: Array) -> HeadPosterior:
    """Return the posterior of a head, with the prior precision that has the greatest marginal likelihood.

    The prior of the head w is a Gaussian around 0 with the precision lambda, the posterior one around the trained head
    with the covariance `(hessian + lambda I)^-1`. The logarithm of the marginal likelihood, as far as it depends on
    lambda, is `(H log lambda - lambda |w|^2 - log det(hessian + lambda I)) / 2` (D. MacKay, "A practical Bayesian
    framework for backpropagation networks", 1992; E. Daxberger et al., "Laplace Redux", arXiv 2106.14806). Its
    derivative vanishes where `gamma(lambda) = lambda |w|^2` with `gamma = sum_i s_i / (s_i + lambda)` over the
    eigenvalues s of the Hessian: the left side falls and the right side rises with lambda, so there is one maximum.

    Args:
        hessian: Hessian of the loss, shape [H, H]; of any rank above 0.
        head: Weight of the head, shape [H].

    Raises:
        DataError: The Hessian is zero or not finite.
        ModelError: The head is zero.
    """
    size = float(head @ head)
    if not size > 0:
        raise ModelError("the weight of the head is zero, so the model was not trained, and its head has no posterior.")
    if not np.isfinite(hessian).all() or not hessian.any():
        raise DataError(
            "the comparisons determine nothing of the head: the two responses of each have the same features, or "
            "rewards so far apart that the loss is flat, or features that are not finite."
        )
    found, vectors = np.linalg.eigh(hessian)
    eigenvalues = found.clip(min=0)

    def determined(precision: float) -> float:
        return float((eigenvalues / (eigenvalues + precision)).sum())

    least, most = min(eigenvalues[-1], 0.5 / size) / 2, len(head) / size
    logarithm = brentq(lambda value: determined(math.exp(value)) - math.exp(value) * size, *np.log([least, most]))
    precision = math.exp(logarithm)
    factor = (vectors / np.sqrt(eigenvalues + precision)) @ vectors.T
    return HeadPosterior(factor, precision, determined(precision))


def fit_laplace(
    reward_model: "RewardModel",
    dataset: Any,
    *,
    split: str | None = None,
    dataset_config: str | None = None,
    dataset_format: str | None = None,
) -> LaplaceFit:
    """Fit the posterior of the head of a reward model to preferences, best those that the model was trained on.

    A Gaussian stands for the posterior of the last layer alone; the layers before it are taken as they are. Its
    covariance is that of `head_posterior` with the Hessian of `bradley_terry_hessian`. The zero of the rewards, which
    no comparison determines, is their mean on this data: the variance of a single reward is taken for its features
    minus the mean features.

    Args:
        reward_model: A loaded model with one head. From here on `score` gives the standard deviation of each reward;
            `.posterior.write(folder)` of the result saves the posterior.
        dataset: A `datasets.Dataset` or a list of rows (pairs or ranked groups); or a hub id, a file or a folder.
        split: The split of a dataset that is loaded: "train" if there is one, else the only one.
        dataset_config: The configuration of a hub dataset that has several.
        dataset_format: The published layout to convert rows from.

    Raises:
        ConfigError: The model is an ensemble, or a split or a configuration comes with loaded rows.
        DataError: The dataset cannot be read, a row is malformed, no row has a preference, or the comparisons determine
            nothing of the head.
        ModelError: The head is zero.
    """
    import torch

    from plaudit.checkpoint.laplace_file import SavedLaplace
    from plaudit.scoring.saved_uncertainty import attach_posterior, features_as_columns

    rows, split = load_rows(
        dataset, split=split, dataset_config=dataset_config, dataset_format=dataset_format, defaults=("train",)
    )
    data = read_preferences(rows)
    with features_as_columns(reward_model) as head:
        sums = _Sums(len(head))
        for better, worse, weights in _compared_columns(reward_model, data):
            sums.add(better, worse, weights)
    fitted = head_posterior(sums.hessian, head.double().numpy())
    name = str(dataset) if isinstance(dataset, (str, Path)) else "rows"
    posterior = SavedLaplace(
        factor=torch.from_numpy(fitted.factor).float(),
        feature_mean=torch.from_numpy(sums.feature_mean).float(),
        head=head,
        constants=sums.reward_constants(),
        prior_precision=fitted.prior_precision,
        measured_on=f"{sums.comparisons} comparisons of {name}" + (f", split {split}" if split else ""),
    )
    reward_model.uncertainty = attach_posterior(reward_model.model, posterior, reward_model.name)
    return LaplaceFit(posterior, sums.comparisons, split, fitted.well_determined)


def _compared_columns(reward_model: "RewardModel", data: PreferenceData) -> Iterator[tuple[Array, Array, Array]]:
    """Yield the columns [C, 1 + H] of the better and of the worse responses, and the weights [C], of some rows each."""
    score, before = reward_model.begin_call(normalize=False), reward_model.truncated
    total = len(data.subsets)
    step = max(reward_model.chunk_size * total // len(data.sequences), 1)
    with tqdm(total=total, unit="row", desc="features", delay=3, disable=None, leave=False) as bar:
        for start in range(0, total, step):
            end = min(start + step, total)
            first, last = data.first_responses[[start, end]].tolist()
            of_rows = slice(first, last)
            sequences, options = data.sequences[of_rows], data.template_options[of_rows]
            columns = score(sequences, options, data.names[of_rows], lambda _: None).columns.astype(np.float64)
            which = slice(*np.searchsorted(data.rows, [start, end]))
            yield columns[data.better[which] - first], columns[data.worse[which] - first], data.weights[which]
            bar.update(end - start)
    if truncated := reward_model.truncated - before:
        logger.warning("%d of %d sequences were too long and were truncated", truncated, len(data.sequences))


class _Sums:
    """Sums over the comparisons, of which each counts by its weight, and each of its two responses by half of it.

    Args:
        num_features: The number H of features.
    """

    def __init__(self, num_features: int) -> None:
        self.hessian = np.zeros((num_features, num_features))
        self.comparisons = 0
        self._weight, self._squares = 0.0, 0.0
        self._columns: Array = np.zeros(1 + num_features)

    def add(self, better: Array, worse: Array, weights: Array) -> None:
        """Add C comparisons by the columns [C, 1 + H] of their responses, the reward first, and their weights [C]."""
        differences = better - worse
        self.hessian += bradley_terry_hessian(differences[:, 1:], differences[:, 0], weights)
        self._weight += float(weights.sum())
        self._columns += weights @ (better + worse) / 2
        self._squares += float(weights @ (better[:, 0] ** 2 + worse[:, 0] ** 2)) / 2
        self.comparisons += len(weights)

    @property
    def feature_mean(self) -> Array:
        """The mean features of the responses, shape [H]."""
        return self._columns[1:] / self._weight

    def reward_constants(self) -> PosteriorUncertainty:
        """Return the mean and the standard deviation of the rewards."""
        mean = self._columns[0] / self._weight
        std = math.sqrt(max(self._squares / self._weight - mean**2, 0.0))
        return PosteriorUncertainty(float(mean), std or 1.0)
