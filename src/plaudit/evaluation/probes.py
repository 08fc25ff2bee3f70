"""Probes of a reward model: verdicts and rewards before and after a change that a good model sees through.

Each row gives one comparison, a ranked group that of its best and its worst response. A probe changes one response, or
the prompt of both, and leaves the rest as it is; `plaudit.evaluation.text_changes` holds the changes of texts.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plaudit.errors import ConfigError, ModelError
from plaudit.evaluation.changed_pairs import Pair, blank_prompt, change_text, read_pairs, shuffle_prompts
from plaudit.evaluation.evaluate import finite_or_none
from plaudit.evaluation.scorer import Scorer, score_sequences
from plaudit.evaluation.text_changes import TEXT_CHANGES
from plaudit.metrics import accuracy_interval_by_prompt, mean_interval_by_prompt

__all__ = ["LIMITS", "ProbeFigure", "ProbeResult", "probe_names", "run_probes", "select_probes"]

Array = NDArray[np.float64]

# The most that a good model shows of each figure, by the expectation of a change. A probe passes where the whole 95%
# interval of each figure is within its limit, and fails where that of one figure is outside.
LIMITS: dict[str, dict[str, float]] = {
    "same": {"flip_rate": 0.1},
    "no_better": {"prefers_changed": 0.5, "turned_wrong": 0.1},
    "not_best": {"turned_wrong": 0.1},
}
_LEAST_DEPENDENCE = 0.5  # the least share of the accuracy above chance that ought to depend on the prompt

_OWN = {
    "swap": "Score the better and the worse responses apart, in reverse order and with swapped roles.",
    "prompt_shuffled": "Replace the prompt of each comparison by that of another row.",
    "prompt_blank": "Replace the prompt of each comparison by an empty one.",
}
_WORDS = {
    "flip_rate": "the change flips {} of the verdicts",
    "prefers_changed": "the model prefers the changed response to the original in {} of the comparisons",
    "turned_wrong": "the change turns {} of the verdicts from right to wrong",
}
_OUTCOMES = {True: "Passed", False: "Failed", None: "Cannot tell"}


@dataclass(frozen=True)
class ProbeFigure:
    """A figure with its 95% interval, by the bootstrap over prompts; NaN where it is not defined."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        return f"{self.value:.1%} (95% interval {self.low:.1%} to {self.high:.1%})"


@dataclass(frozen=True)
class ProbeResult:
    """The figures of one probe.

    Attributes:
        name: Name of the probe.
        description: The change, in one sentence.
        comparisons: Number of comparisons that the change applies to; it leaves the text of the others as it is.
        flip_rate: Share of comparisons whose verdict changes; from or to equal rewards counts one half.
        turned_wrong: Share of comparisons whose verdict changes from right to wrong.
        shift: Mean change of the changed response's reward, in standard deviations of the unchanged responses' rewards.
            Where the prompt changes, that of the worse response's lead over the better one.
        prefers_changed: Share of comparisons in which that change is above zero; zero counts one half.
        accuracy: Accuracy before the change.
        accuracy_changed: Accuracy after the change; of `swap`, with the roles of both responses swapped.
        prompt_dependence: (accuracy - accuracy_changed) / (accuracy - 1/2), for `prompt_shuffled` and `prompt_blank`.
        passed: Verdict on the model; `None` where the interval allows both, or the change applies to no row.
        verdict: The verdict in one sentence.
    """

    name: str
    description: str
    comparisons: int = 0
    flip_rate: ProbeFigure = ProbeFigure()
    turned_wrong: ProbeFigure = ProbeFigure()
    shift: ProbeFigure = ProbeFigure()
    prefers_changed: ProbeFigure = ProbeFigure()
    accuracy: ProbeFigure = ProbeFigure()
    accuracy_changed: ProbeFigure = ProbeFigure()
    prompt_dependence: ProbeFigure | None = None
    passed: bool | None = None
    verdict: str = "The change applies to no row."

    def to_dict(self) -> dict[str, Any]:
        """Return all fields for JSON, with `None` for figures that are not defined."""
        return finite_or_none(asdict(self))


def probe_names() -> list[str]:
    """Return the names of all probes, those that the user registered included."""
    return [*_OWN, *TEXT_CHANGES]


def select_probes(names: str | Sequence[str]) -> list[str]:
    """Return the probes of the given names, in the order of `probe_names`: see `run_probes`.

    Raises:
        ConfigError: There is no probe of a name.
    """
    known, wanted = probe_names(), [names] if isinstance(names, str) else names
    if "all" in wanted:
        return known
    found = {name: [each for each in known if each == name or each.startswith(f"{name}_")] for name in wanted}
    if missing := [name for name, probes in found.items() if not probes]:
        raise ConfigError(f"probes: there is no {missing[0]!r}. Give 'all', or some of {', '.join(known)}.")
    return [each for each in known if any(each in probes for probes in found.values())]


def run_probes(
    scorer: Scorer | Callable[[list[Any]], Any], rows: Iterable[Any], names: str | Sequence[str] = "all", seed: int = 0
) -> list[ProbeResult]:
    """Change the texts of preference rows, and report how verdicts and rewards move.

    All sequences are scored in one call, those of a row next to each other, so that a model that shares prompts runs
    each prompt once; `swap` adds two calls. Where a scorer refuses changed texts, such as an empty prompt, by a
    `ValueError` or a `LookupError`, each probe has a call of its own. The same arguments give the same results.

    Args:
        scorer: A reward model, an object with such a method `score`, or a function from N texts or conversations to N
            rewards.
        rows: Pairs or ranked groups, as `plaudit.evaluate` takes them; ties are left out.
        names: "all", or names of probes; "padding" means all whose names begin with "padding_".
        seed: Seed of what the changes draw at random.

    Raises:
        ConfigError: There is no probe of a name.
        DataError: A row is malformed (the message names it), or no row has a preference.
        ModelError: A reward is not finite; the message names the row and the probe.
    """
    chosen, pairs = select_probes(names), read_pairs(rows)
    changed = {
        name: [change_text(pair, TEXT_CHANGES[name], seed) for pair in pairs] for name in chosen if name not in _OWN
    }
    if "prompt_shuffled" in chosen:
        changed["prompt_shuffled"] = list(map(shuffle_prompts(pairs, seed), pairs))
    if "prompt_blank" in chosen:
        changed["prompt_blank"] = list(map(blank_prompt, pairs))
    rewards, refused = _score(scorer, pairs, changed)
    if "swap" in chosen:
        rewards["swap"] = _score_apart(scorer, pairs)
    results = {name: _measure(name, pairs, rewards[""], rewards[name]) for name in chosen if name in rewards}
    for name, error in refused.items():
        verdict = f"Cannot tell: the scorer refuses the changed texts ({error!s:.200})."
        results[name] = ProbeResult(name, _describe(name), verdict=verdict)
    return [results[name] for name in chosen]


# Rewards


def _score(
    scorer: Any, pairs: list[Pair], changed: dict[str, list[Pair]]
) -> tuple[dict[str, Array], dict[str, Exception]]:
    """Return the rewards [P, 2] of each probe, of the unchanged pairs under the name "", and errors of refused probes.

    A row of NaN stands where a change does not apply.
    """
    refused: dict[str, Exception] = {}
    try:
        rewards = _score_together(scorer, pairs, {"": pairs} | changed)
    except ModelError:
        raise
    except (LookupError, ValueError):
        rewards = _score_together(scorer, pairs, {"": pairs})
        for name in changed:
            try:
                rewards |= _score_together(scorer, pairs, {name: changed[name]})
            except ModelError:
                raise
            except (LookupError, ValueError) as error:
                refused[name] = error
    for new in rewards.values():  # where one of two responses has changed, the reward of the other is known
        one = np.isnan(new) & ~np.isnan(new).all(axis=1, keepdims=True)
        new[one] = rewards[""][one]
    return rewards, refused


def _score_together(scorer: Any, pairs: list[Pair], changed: dict[str, list[Pair]]) -> dict[str, Array]:
    """Score the sequences that each probe changes, and return rewards [P, 2]; NaN stands for those that stay.

    A change does not apply where both sequences stay, or one becomes equal to the other, or to the empty text.
    """
    places, sequences, options, names = [], [], [], []
    rewards = {name: np.full((len(pairs), 2), np.nan) for name in changed}
    for number, pair in enumerate(pairs):
        for name in changed:
            new = changed[name][number].sequences
            if name and (new == pair.sequences or new[0] == new[1] or not all(new)):
                continue
            for side in (0, 1):
                if not name or new[side] != pair.sequences[side]:
                    places.append((name, number, side))
                    sequences.append(new[side])
                    options.append(pair.options)
                    names.append(pair.names[side] + (f", probe '{name}'" if name else ""))
    scored = score_sequences(scorer, sequences, options, names)[0] if sequences else np.empty(0)
    for (name, number, side), reward in zip(places, scored.tolist(), strict=True):
        rewards[name][number, side] = reward
    return rewards


def _score_apart(scorer: Any, pairs: list[Pair]) -> Array:
    """Return the rewards [P, 2] where the two sides are scored by two calls, in reverse order."""
    sides = []
    for side in (1, 0):
        sequences = [pair.sequences[side] for pair in reversed(pairs)]
        names = [f"{pair.names[side]}, probe 'swap'" for pair in reversed(pairs)]
        sides.append(score_sequences(scorer, sequences, [pair.options for pair in reversed(pairs)], names)[0][::-1])
    return np.stack(sides[::-1], axis=1)


# Figures and verdicts


def _measure(name: str, pairs: list[Pair], before: Array, after: Array) -> ProbeResult:
    """Return the result of a probe from the rewards [P, 2] of the pairs before and after it."""
    here, change, std = ~np.isnan(after[:, 0]), TEXT_CHANGES.get(name), before.std()
    result = ProbeResult(name, _describe(name), int(here.sum()))
    if not here.any():
        return result
    before, after = before[here], after[here]
    won, wins = _wins(before), _wins(after)
    mean = partial(_mean, [pair for pair, applies in zip(pairs, here, strict=True) if applies])
    figures: dict[str, Any] = {
        "flip_rate": mean(np.abs(won - wins)),
        "turned_wrong": mean(np.maximum(won - wins, 0)),
        "accuracy": mean(won),
        "accuracy_changed": mean(wins),
    }
    if name == "swap":
        swapped = figures["accuracy_changed"]
        figures["accuracy_changed"] = ProbeFigure(1 - swapped.value, 1 - swapped.high, 1 - swapped.low)
        return replace(result, **figures, **_judge_swap(int((won != wins).sum())))
    gains = (after - before) @ ([1, 0] if change and change.target == "better" else [-1, 1])
    figures["prefers_changed"] = mean((np.sign(gains) + 1) / 2)
    figures["shift"] = mean(gains / std, is_share=False) if std > 0 else ProbeFigure()
    if change:
        return replace(result, **figures, **_judge(figures, LIMITS[change.expectation]))
    dependence = _dependence(won, wins, figures, mean)
    verdict = _judge_dependence(dependence, figures["accuracy"])
    return replace(result, **figures, prompt_dependence=dependence, **verdict)


def _describe(name: str) -> str:
    return _OWN[name] if name in _OWN else TEXT_CHANGES[name].description


def _wins(rewards: Array) -> Array:
    """Return 1 where the better response [C, 2] has the greater reward, 1/2 for equal rewards, else 0."""
    return (np.sign(rewards[:, 0] - rewards[:, 1]) + 1) / 2


def _mean(pairs: list[Pair], values: Array, is_share: bool = True) -> ProbeFigure:
    """Return the mean of values [P]; of shares, made of 0, 1/2 and 1, with some width even where all are equal."""
    prompts, weights = [pair.key for pair in pairs], [pair.weight for pair in pairs]
    if is_share:
        low, high = accuracy_interval_by_prompt(values, np.full(len(values), 0.5), prompts, weights)
        low, high = max(low, 0.0), min(high, 1.0)  # free of rounding
    else:
        low, high = mean_interval_by_prompt(values, prompts, weights)
    return ProbeFigure(float(np.average(values, weights=weights)), low, high)


def _dependence(
    won: Array, wins: Array, figures: dict[str, ProbeFigure], mean: Callable[..., ProbeFigure]
) -> ProbeFigure:
    """Return the prompt dependence D from verdicts before and after [C]; not defined where the accuracy is chance.

    The interval is that of the mean of D + (won - wins - D (won - 1/2)) / mean(won - 1/2), the linear approximation of
    a ratio of means (the delta method).
    """
    if (won == wins).all():  # the upper end is the bound of Clopper and Pearson (1934) for what was never seen
        return ProbeFigure(0.0, 0.0, 1 - 0.025 ** (1 / len(won)))
    if figures["accuracy"].low <= 0.5:
        return ProbeFigure()
    above = figures["accuracy"].value - 0.5
    dependence = (figures["accuracy"].value - figures["accuracy_changed"].value) / above
    return mean(dependence + (won - wins - dependence * (won - 0.5)) / above, is_share=False)


def _judge(figures: dict[str, ProbeFigure], limits: dict[str, float]) -> dict[str, Any]:
    """Return `passed`, and as `verdict` a sentence with the figures that decide it."""
    within = {name: True if figures[name].high <= most else False if figures[name].low > most else None
              for name, most in limits.items()}  # fmt: skip
    passed = next((each for each in (False, None) if each in within.values()), True)
    deciding = [
        f"{_WORDS[name].format(figures[name])}, and at most {limits[name]:.0%} is expected"
        for name, each in within.items()
        if each is passed
    ]
    return {"passed": passed, "verdict": f"{_OUTCOMES[passed]}: {'; '.join(deciding)}."}


def _judge_swap(wrong: int) -> dict[str, Any]:
    if wrong:
        verdict = f"Failed: {wrong:,} of the verdicts changed when the responses were scored in other batches."
        return {"passed": False, "verdict": verdict}
    return {"passed": True, "verdict": "Passed: no verdict changed when the responses were scored in other batches."}


def _judge_dependence(dependence: ProbeFigure, accuracy: ProbeFigure) -> dict[str, Any]:
    if math.isnan(dependence.value):
        return {"passed": None, "verdict": f"Cannot tell: an accuracy of {accuracy} is not clearly above chance."}
    if dependence.value == dependence.low == 0:
        passed = False if dependence.high < 0.1 else None  # fewer than 36 comparisons are too few
        return {"passed": passed, "verdict": f"{_OUTCOMES[passed]}: no verdict depends on the prompt."}
    least = _LEAST_DEPENDENCE
    passed = True if dependence.low >= least else False if dependence.high < least else None
    share = f"{dependence} of the accuracy above chance depends on the prompt, and at least {least:.0%} is expected"
    return {"passed": passed, "verdict": f"{_OUTCOMES[passed]}: {share}."}
