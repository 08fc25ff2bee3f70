"""Limits on the figures of an evaluation, such as an accuracy of at least 0.7."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plaudit.errors import ConfigError
from plaudit.evaluation.figures import METRICS, SHARES

if TYPE_CHECKING:
    from plaudit.evaluation.evaluate import Evaluation

__all__ = ["Limit", "failures", "parse_limit"]


@dataclass(frozen=True)
class Limit:
    """The least value of a figure, or the greatest one if `upper`.

    Attributes:
        metric: A key of `plaudit.evaluation.figures.METRICS`.
        value: The limit, which itself is allowed.
        upper: Whether the figure must not be greater, rather than not be less.

    Raises:
        ConfigError: There is no such figure, or it can never have this value.
    """

    metric: str
    value: float
    upper: bool = False

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            similar = difflib.get_close_matches(self.metric, METRICS, n=1)
            hint = f"Did you mean {similar[0]}? " if similar else ""
            raise ConfigError(f"there is no figure {self.metric!r}. {hint}There are: {', '.join(METRICS)}.")
        if math.isnan(self.value):
            raise ConfigError(f"expected METRIC=VALUE with a number, such as {self.metric}=0.7.")
        if self.metric in SHARES and not 0 <= self.value <= 1:
            raise ConfigError(f"expected a share from 0 to 1, such as {self.metric}=0.7 for 70%.")

    def holds(self, figures: dict[str, float]) -> bool:
        """Return whether a figure keeps the limit; one that is not defined (NaN) does not."""
        figure = figures[self.metric]
        return figure <= self.value if self.upper else figure >= self.value


def parse_limit(text: str, *, upper: bool) -> Limit:
    """Read a limit of `--fail_under`, or of `--fail_over` if `upper`, from `METRIC=VALUE`.

    Raises:
        ConfigError: There is no such figure, or the value is not a number that the figure can have.
    """
    metric, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    try:
        return Limit(metric, number, upper)
    except ConfigError as error:
        raise ConfigError(f"{'--fail_over' if upper else '--fail_under'} {text}: {error}") from error


def failures(evaluation: "Evaluation", limits: Sequence[Limit]) -> list[str]:
    """Return a line for each limit that a figure of the evaluation does not keep."""
    return [
        f"{evaluation.dataset}: {limit.metric} is {evaluation.overall[limit.metric]:.6g}, "
        f"{'over' if limit.upper else 'under'} {limit.value:g}"
        for limit in limits
        if not limit.holds(evaluation.overall)
    ]
