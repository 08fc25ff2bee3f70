"""Uncertainty of rewards: the spread of an ensemble's members, and rewards that are lowered by it; NumPy only.

A model with an uncertainty gives C columns for each sequence: the reward, and what the uncertainty is made of.
The classes here say how to read the columns. Bradley-Terry rewards have no common zero and no common unit, so each
member is centred and scaled on one reference set before members are compared. Standard deviations divide by K - 1.
"""

import logging
import math
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plaudit.errors import ConfigError

__all__ = [
    "AGGREGATES",
    "Aggregate",
    "MemberUncertainty",
    "PosteriorUncertainty",
    "Uncertainty",
    "UnmeasuredMembers",
    "check_aggregate",
    "checked_uncertainty",
    "uncertainty_from_dict",
]

logger = logging.getLogger(__name__)

Aggregate = Literal["mean", "min", "mean-std", "mean-var"]
AGGREGATES: tuple[str, ...] = get_args(Aggregate)

_ROUNDING = 1e-6  # of the size of rewards, at least 1: float32 rewards that differ by less are the same


@dataclass(frozen=True)
class MemberUncertainty:
    """The constants by which the members of an ensemble are compared, measured on one reference set.

    Attributes:
        centers: Mean reward of each member, length K, at least 2.
        scales: Standard deviation of the rewards of each member, above 0, length K.
        reward_std: Standard deviation of the rewards of the model, which are the means of the members.
        is_measured: Whether members can be compared, so that there are standard deviations.
    """

    centers: tuple[float, ...]
    scales: tuple[float, ...]
    reward_std: float
    kind: ClassVar[str] = "members"
    is_measured: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not len(self.centers) == len(self.scales) >= 2:
            raise ConfigError(
                f"uncertainty: expected a center and a scale for each of two or more members, got {len(self.centers)} "
                f"centers and {len(self.scales)} scales."
            )
        _check_scales(*self.scales, self.reward_std)

    @classmethod
    def measure(cls, members: ArrayLike, rewards: ArrayLike | None = None) -> "MemberUncertainty":
        """Measure the constants on the raw rewards of the members [N, K] of a reference set.

        A member whose rewards are all the same, up to rounding, gets the scale 1.0, and a warning names it.

        Args:
            members: Raw rewards of the members, shape [N, K].
            rewards: Rewards of the model, shape [N]; the mean of the members if `None`.

        Example:
            >>> MemberUncertainty.measure([[0.0, 10.0], [2.0, 30.0]])
            MemberUncertainty(centers=(1.0, 20.0), scales=(1.0, 10.0), reward_std=5.5)
        """
        values = np.asarray(members, dtype=np.float64)
        values = np.column_stack([values, values.mean(1) if rewards is None else rewards])
        means, stds = values.mean(0), values.std(0)
        varies = stds > _ROUNDING * np.maximum(1, np.abs(means))
        for number in np.flatnonzero(~varies[:-1]).tolist():
            logger.warning(
                "member %d gives the same reward (%.4g) to all %d sequences of the reference set: its scale is 1.0",
                number + 1, means[number], len(values),
            )  # fmt: skip
        *scales, reward_std = np.where(varies, stds, 1.0).tolist()
        return cls(tuple(means[:-1].tolist()), tuple(scales), reward_std)

    @property
    def num_columns(self) -> int:
        """The number of columns: the reward, and the raw rewards of the K members."""
        return 1 + len(self.centers)

    def standardize(self, members: ArrayLike) -> NDArray[np.float64]:
        """Return the rewards of the members [..., K], each centred and scaled on the reference set."""
        return (np.asarray(members, dtype=np.float64) - self.centers) / self.scales

    def members(self, columns: ArrayLike) -> NDArray[np.float32]:
        """Return the raw rewards of the members [N, K]."""
        return np.asarray(columns, dtype=np.float32)[:, 1:]

    def std(self, columns: ArrayLike) -> NDArray[np.float32]:
        """Return the standard deviation of each reward [N]: that of the standardised members, times `reward_std`.

        Example:
            >>> MemberUncertainty((0.0, 0.0), (1.0, 2.0), reward_std=2.0).std([[1.5, 1.0, 2.0], [2.5, 1.0, 4.0]])
            array([0.       , 1.4142135], dtype=float32)
        """
        spread = self.standardize(self.members(columns)).std(1, ddof=1) * self.reward_std
        return spread.astype(np.float32)

    def aggregate(self, columns: ArrayLike, how: str, k: float = 1.0) -> NDArray[np.float32]:
        """Return one reward [N] for each sequence.

        Args:
            columns: The reward and the raw rewards of the members, shape [N, 1 + K].
            how: "mean" is the reward of the model. The conservative ones are in standard deviations of the reference
                set, with zero at its mean, so that neither a shift nor a scale of one member changes them: "min" is the
                least of the standardised members, "mean-std" their mean minus k standard deviations, "mean-var" their
                mean minus k variances (T. Coste et al., "Reward model ensembles help mitigate overoptimization", arXiv
                2310.02743).
            k: The weight of the spread.

        Raises:
            ConfigError: There is no such aggregate, or `k` is negative or has no use in it.

        Example:
            >>> MemberUncertainty((0.0, 0.0), (1.0, 1.0), reward_std=1.0).aggregate([[2.0, 1.0, 3.0]], "mean-var", 0.5)
            array([1.], dtype=float32)
        """
        check_aggregate(how, k)
        if how == "mean":
            return np.asarray(columns, dtype=np.float32)[:, 0]
        values = self.standardize(self.members(columns))
        if how == "min":
            return values.min(1).astype(np.float32)
        spread = values.std(1, ddof=1) if how == "mean-std" else values.var(1, ddof=1)
        return (values.mean(1) - k * spread).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return the constants in JSON values."""
        lists = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"kind": self.kind} | lists


@dataclass(frozen=True)
class PosteriorUncertainty:
    """The constants of a Gaussian posterior of one head (`plaudit laplace`), measured on one reference set.

    The columns are the reward, its standard deviation, which is exact, and the rewards of heads that were sampled from
    the posterior. The samples stand for the members of an ensemble, with the zero and the unit of the model's rewards.

    Attributes:
        reward_mean: Mean of the rewards of the model.
        reward_std: Standard deviation of the rewards of the model, above 0.
        num_samples: Number K of sampled heads.
        is_measured: True, since the constants are always there.
    """

    reward_mean: float
    reward_std: float
    num_samples: int = 64
    kind: ClassVar[str] = "posterior"
    is_measured: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_scales(self.reward_std)

    @property
    def num_columns(self) -> int:
        """The number of columns: the reward, its standard deviation, and K samples."""
        return 2 + self.num_samples

    def standardize(self, members: ArrayLike) -> NDArray[np.float64]:
        """Return rewards of any shape, centred and scaled by the rewards of the model on the reference set."""
        return (np.asarray(members, dtype=np.float64) - self.reward_mean) / self.reward_std

    def members(self, columns: ArrayLike) -> NDArray[np.float32]:
        """Return the raw rewards of the sampled heads [N, K]."""
        return np.asarray(columns, dtype=np.float32)[:, 2:]

    def std(self, columns: ArrayLike) -> NDArray[np.float32]:
        """Return the standard deviation of each reward [N] under the posterior, in the unit of the reward."""
        return np.asarray(columns, dtype=np.float32)[:, 1]

    def aggregate(self, columns: ArrayLike, how: str, k: float = 1.0) -> NDArray[np.float32]:
        """Return one reward [N] for each sequence.

        Args:
            columns: The reward, its standard deviation and the samples, shape [N, 2 + K].
            how: "mean" is the reward of the model. "mean-std" and "mean-var" are that minus k standard deviations or
                variances under the posterior, in standard deviations of the rewards of the reference set.
            k: The weight of the spread.

        Raises:
            ConfigError: There is no such aggregate, or `k` is negative or has no use in it; or `how` is "min".

        Example:
            >>> PosteriorUncertainty(1.0, 2.0, num_samples=0).aggregate([[5.0, 1.0]], "mean-std")
            array([1.5], dtype=float32)
        """
        check_aggregate(how, k)
        if how == "min":
            raise ConfigError(
                "aggregate: a posterior has no least member, since the minimum of samples falls with their number. "
                "Use 'mean-std' or 'mean-var'."
            )
        rewards = np.asarray(columns, dtype=np.float32)[:, 0]
        if how == "mean":
            return rewards
        spread = self.std(columns) / self.reward_std
        return (self.standardize(rewards) - k * (spread if how == "mean-std" else spread**2)).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return the constants in JSON values."""
        return {"kind": self.kind} | asdict(self)


@dataclass(frozen=True)
class UnmeasuredMembers(MemberUncertainty):
    """Members that give rewards, and cannot be compared: one of them was saved without the scale of its rewards.

    The constants are place holders, of which no figure comes: only members and means can be read.

    Attributes:
        lacking: The name of the first member without a scale.
    """

    lacking: str = ""
    kind: ClassVar[str] = "unmeasured"
    is_measured: ClassVar[bool] = False

    def standardize(self, members: ArrayLike) -> NDArray[np.float64]:  # noqa: ARG002  # of the base class
        """Raise a `ConfigError` that says how to measure the members."""
        raise ConfigError(
            f"members are compared by the mean and the standard deviation of their rewards, and {self.lacking} was "
            "saved without them. A model with several heads measures its own when it is saved after an evaluation; of "
            "several models, `plaudit ensemble A B C --output FOLDER --data REFERENCE` measures all on one set."
        )


Uncertainty = MemberUncertainty | PosteriorUncertainty


def _check_scales(*scales: float) -> None:
    """Raise unless every standard deviation is a finite number above 0."""
    if not all(0 < scale < math.inf for scale in scales):
        raise ConfigError(f"uncertainty: expected standard deviations above 0, got {', '.join(map(str, scales))}.")


def uncertainty_from_dict(described: dict[str, Any]) -> Uncertainty:
    """Return the uncertainty whose `to_dict` gave these values.

    Raises:
        ConfigError: The values are of no known kind, one is missing, or a standard deviation is not above 0.

    Example:
        >>> uncertainty_from_dict(PosteriorUncertainty(1.0, 2.0).to_dict())
        PosteriorUncertainty(reward_mean=1.0, reward_std=2.0, num_samples=64)
    """
    kinds: dict[Any, Any] = {each.kind: each for each in (MemberUncertainty, PosteriorUncertainty, UnmeasuredMembers)}
    try:
        values = {name: tuple(map(float, v)) if isinstance(v, list) else v for name, v in described.items()}
        return kinds[values.pop("kind", None)](**values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"uncertainty: expected the constants of one of {', '.join(kinds)}, got {described!r:.200} ({error})"
        ) from error


def check_aggregate(how: str, k: float, *, normalize: bool = False) -> None:
    """Raise unless an aggregate exists, its weight is not negative, and its unit is not normalised a second time.

    Raises:
        ConfigError: There is no such aggregate, the weight is no finite number of at least 0 or has no use, or
            `normalize` is asked of a conservative reward.
    """
    if how not in AGGREGATES:
        raise ConfigError(f"aggregate: expected one of {', '.join(AGGREGATES)}, got {how!r}.")
    if not (isinstance(k, Real) and 0 <= k < math.inf):
        raise ConfigError(f"k: expected a finite number of at least 0, got {k!r}.")
    if k != 1 and how in ("mean", "min"):
        raise ConfigError(f"k={k}: the aggregate {how!r} has no spread to weigh. Use mean-std or mean-var with it.")
    if normalize and how != "mean":
        raise ConfigError(
            f"normalize: aggregate={how!r} is in standard deviations of the rewards already. Leave `normalize` out."
        )


def checked_uncertainty(
    uncertainty: Uncertainty | None,
    name: str,
    aggregate: str = "mean",
    k: float = 1.0,
    *,
    needed_by: str | None = None,
    wants_std: bool = False,
) -> Uncertainty | None:
    """Return the uncertainty of a model, after a check that it can give what is asked for.

    Args:
        uncertainty: The uncertainty; `None` for a single model.
        name: Name of the model, for the error.
        aggregate: The aggregate that is asked for.
        k: Its weight of the spread.
        needed_by: Name of another option that a single model cannot serve, if one is set.
        wants_std: Standard deviations are asked for.

    Raises:
        ConfigError: The aggregate or its weight cannot be used, or a single model is asked for one.
    """
    check_aggregate(aggregate, k)
    needed_by = f"aggregate={aggregate!r}" if aggregate != "mean" else needed_by
    if uncertainty is not None:  # calling it on an empty array raises where the constants are missing
        nothing = np.zeros((0, uncertainty.num_columns), np.float32)
        uncertainty.aggregate(nothing, aggregate, k)
        if wants_std:
            uncertainty.std(nothing)
    elif needed_by is not None:
        raise ConfigError(
            f"{needed_by}: {name} is a single model, which does not say how sure its rewards are. Train one with "
            "`num_heads=5`, join several by `plaudit ensemble A B C --output FOLDER`, or fit a posterior of its "
            "head by `plaudit laplace MODEL DATA`."
        )
    return uncertainty
