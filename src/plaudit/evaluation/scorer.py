"""Scorers of texts and conversations as an evaluation calls them: rewards, lengths, and the properties of a model."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from plaudit.errors import ModelError
from plaudit.uncertainty import PosteriorUncertainty

__all__ = ["Scorer", "score_sequences"]


class Scorer(Protocol):
    """A model of rewards: `plaudit.RewardModel`, or anything with its method `score`."""

    def score(self, sequences: Any, *, options: Any = ..., names: Any = ...) -> Any:
        """Return the rewards [N] of N texts or conversations."""


def score_sequences(
    model: Any, sequences: list[Any], options: list[dict[str, Any]] | None = None, names: list[str] | None = None
) -> tuple[NDArray[np.float64], dict[str, Any], tuple[Any, Any, Any, Any]]:
    """Score N texts or conversations with a reward model or any other scorer.

    Args:
        model: A reward model, an object with a method `score`, or a function from sequences to rewards.
        sequences: N texts or conversations.
        options: N dicts of keyword arguments for the chat template, if any.
        names: N names for error messages.

    Returns:
        The rewards [N]; the properties of the model for the header of a score file; and the lengths in tokens [N], the
        flags of truncated sequences [N], the raw rewards of the members [N, K] and the standard deviations of a
        posterior [N], `None` where the scorer does not tell them. The latter two have six digits, which a score file
        keeps.

    Raises:
        ModelError: The scorer returns another number of rewards, or a reward is not finite.
    """
    is_reward_model = hasattr(model, "describe")
    scored: Any
    if is_reward_model:
        scored = model.score(sequences, options=options, names=names, return_details=True)
    else:
        scored = model.score(sequences, options=options, names=names) if hasattr(model, "score") else model(sequences)
    header: dict[str, Any] = {"model": getattr(model, "name", None) or getattr(model, "__name__", type(model).__name__)}
    details: tuple[Any, Any, Any, Any] = (None, None, None, None)
    if is_reward_model and hasattr(scored, "uncertainty"):  # a subclass may leave the details out
        header, members, stds = model.describe(sequences[0]), None, None
        uncertainty = scored.uncertainty
        if scored.has_stds:
            header["uncertainty"], members = uncertainty.to_dict(), _six_digits(uncertainty.members(scored.columns))
            stds = _six_digits(scored.stds()) if isinstance(uncertainty, PosteriorUncertainty) else None
        scored, details = scored.rewards, (scored.tokens, scored.truncated, members, stds)
    rewards = np.asarray(scored, dtype=np.float64)
    if rewards.shape != (len(sequences),):
        raise ModelError(
            f"expected {len(sequences)} rewards, one for each sequence, got an array of shape {rewards.shape}. A "
            "scorer is given a list of texts or conversations, and returns as many numbers."
        )
    _check_finite(rewards, names or [f"sequence {number}" for number in range(len(sequences))])
    return rewards, header, details


def _six_digits(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return numbers rounded to the digits that float32 can tell apart, which are short as text."""
    return np.array([float(f"{each:.6g}") for each in values.ravel()], dtype=np.float64).reshape(values.shape)


def _check_finite(rewards: NDArray[np.float64], names: list[str]) -> None:
    wrong = np.flatnonzero(~np.isfinite(rewards)).tolist()
    if wrong:
        first = "; ".join(names[place] for place in wrong[:5])
        raise ModelError(
            f"{len(wrong)} of {len(rewards)} rewards are not finite, so no figure can be computed. The first are of "
            f"{first}. Look at these rows, and at the weights; use bfloat16 or float32 rather than float16."
        )
