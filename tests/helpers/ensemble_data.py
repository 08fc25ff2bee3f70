"""Scores of ensembles in worlds where it is known what their spread says."""

import numpy as np

from plaudit.evaluation.scores import ScoredRow, Scores
from plaudit.uncertainty import MemberUncertainty

__all__ = ["ensemble_scores", "ensemble_world"]


def ensemble_world(kind, comparisons=1000, members=5, seed=0):
    """Differences of rewards of the better minus the other response, of each member [C, K].

    Args:
        kind: "told": the noise of all members is larger for some comparisons. "noise": it is the same for all.
            "follows": the members disagree in proportion to the difference, and a quarter of the labels is wrong.
            "alike": the members are nearly one.
        comparisons: C.
        members: K.
        seed: Seed of the draws.
    """
    draw = np.random.default_rng(seed)
    truth, noise = draw.normal(0, 1.5, comparisons)[:, None], draw.normal(size=(comparisons, members))
    scale = np.exp(draw.normal(0, 0.8, comparisons))[:, None] if kind == "told" else 1.0
    differences = truth * (1 + 0.3 * noise) if kind == "follows" else truth + scale * noise
    if kind == "alike":
        differences = truth + 0.05 * noise
    right = 0.25 + 0.5 * (truth > 0) if kind == "follows" else 1 / (1 + np.exp(-2 * truth))
    return differences * np.where(draw.uniform(size=(comparisons, 1)) < right, 1, -1)


def ensemble_scores(kind="told", comparisons=1000, members=5, seed=0, **columns):
    """The scores of an ensemble: each row a pair, with prompt keys of its own."""
    differences = ensemble_world(kind, comparisons, members, seed)
    rows = [
        ScoredRow(n, [float(each.mean()), 0.0], members=[each.tolist(), [0.0] * members], **columns)
        for n, each in enumerate(differences)
    ]
    constants = MemberUncertainty((0.0,) * members, (1.0,) * members, 1.0)
    return Scores({"model": "ensemble", "uncertainty": constants.to_dict()}, rows)
