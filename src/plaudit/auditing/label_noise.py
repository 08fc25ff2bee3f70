"""Label noise: how many labels are wrong at least, and which, from margins of models that did not train on them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from plaudit.errors import DataError
from plaudit.evaluation.baselines import share_and_interval

if TYPE_CHECKING:
    from plaudit.evaluation.scores import Scores

__all__ = ["estimate_noise", "margins_of_scores"]

_TOPS = (0.05, 0.1, 0.2)  # the rows of which a model is surest, as shares of all
_FEWEST = 30  # rows in such a share
_ABLE = 0.6  # where the lower end of the accuracy is below, the verdict is "cannot tell"


def estimate_noise(
    margins: NDArray[np.float64], prompts: NDArray[Any], rows: NDArray[np.integer], source: str = "the model"
) -> dict[str, Any]:
    """Estimate the least share of wrong labels from out-of-fold margins, by confident learning.

    If labels are wrong at random, they are so among the rows of which the model is surest too, and there it disagrees
    with few others (after C. Northcutt et al., "Confident learning", JAIR 70, 2021). So the estimate is the least share
    of disagreement, less one standard error, among the surest 5%, 10% and 20%. It understates: a lower bound.

    Args:
        margins: Logits that the better response is preferred, of models that did not see the prompt, shape [C].
        prompts: Equal for comparisons of one prompt, shape [C].
        rows: Row of each comparison, shape [C].
        source: Name of the model, for the verdict.

    Returns:
        `estimate` (a share, or `None` where the model cannot tell), `verdict`, `probe_accuracy` with its interval
        (`probe_low`, `probe_high`), and `suspects`: rows in which the model prefers the other response, the most
        suspicious first, at most a fifth of all.
    """
    found: dict[str, Any] = {"estimate": None, "suspects": []}
    if len(np.unique(prompts)) < 2:
        return found | {"verdict": "cannot tell: there are no comparisons on two prompts or more"}
    shown = share_and_interval(margins, prompts)
    found |= {f"probe_{name}": value for name, value in shown.items()}
    numbers, place, counts = np.unique(rows, return_inverse=True, return_counts=True)
    of_rows = np.bincount(place, margins) / counts
    suspects = np.argsort(of_rows, kind="stable")[: len(of_rows) // 5]
    found["suspects"] = numbers[suspects[of_rows[suspects] < 0]].tolist()
    probe = f"{source} agrees with {shown['accuracy']:.1%} of the labels ({shown['low']:.1%} to {shown['high']:.1%})"
    if shown["low"] < _ABLE:
        return found | {"verdict": f"cannot tell: {probe}, too close to guessing to say which labels are wrong"}
    if len(numbers) < (fewest := round(_FEWEST / _TOPS[-1])):
        return found | {"verdict": f"cannot tell: {len(numbers):,} rows have a comparison, and it takes {fewest}"}
    wrong = of_rows[np.argsort(-np.abs(of_rows), kind="stable")] < 0  # surest first
    tops = [wrong[: int(top * len(wrong))] for top in _TOPS if int(top * len(wrong)) >= _FEWEST]
    estimate = max(0.0, min(float(top.mean() - top.std() / np.sqrt(len(top))) for top in tops))
    amount = f"at least {estimate:.1%} of the labels seem wrong"
    return found | {
        "estimate": estimate,
        "verdict": f"{amount if estimate >= 0.005 else 'nothing points to wrong labels'}: {probe}",
    }


def margins_of_scores(
    files: Sequence["Scores"], places: Mapping[int, Sequence[int]]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the margin of each comparison in score files of folds, and its row in the dataset.

    Args:
        files: Score files, each of the rows that its model did not train on.
        places: Rows of the dataset by the key of their texts (`ScoredRow.row_key`); a row that is there twice has two.
            A scored row without a key is found by its number.

    Raises:
        DataError: A row is not in the dataset, or is scored more often than it is there.
    """
    margins, rows = [], []
    left = {key: list(numbers) for key, numbers in places.items()}
    by_number = {number: [number] for numbers in places.values() for number in numbers}
    for file in files:
        numbers = []
        for scored in file.rows:
            found = by_number.get(scored.row) if scored.row_key is None else left.get(scored.row_key)
            if found is None:
                raise DataError(f"{file.name}: row {scored.row} is not in the dataset: name the data that was scored.")
            if not found:
                raise DataError(
                    f"{file.name}: row {scored.row} is scored twice. Give one file for each fold, with the rows that "
                    "its model did not train on."
                )
            numbers.append(found.pop(0))
        margins.append(file.margins)
        rows.append(np.array(numbers)[file.comparisons.rows])
    return np.concatenate(margins), np.concatenate(rows)
