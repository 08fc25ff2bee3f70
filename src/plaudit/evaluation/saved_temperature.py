"""The temperature that calibrates a reward model, fitted on an evaluation and saved in the model's `reward.json`."""

import math
from pathlib import Path
from typing import Any

from plaudit.calibration import best_temperature, temperature_interval
from plaudit.errors import ConfigError
from plaudit.evaluation.evaluate import Evaluation
from plaudit.evaluation.scores import Scores

__all__ = ["fit_temperature", "save_temperature"]


def fit_temperature(scores: Scores) -> dict[str, Any]:
    """Fit the temperature to scored comparisons.

    Returns:
        `temperature`, the ends `low` and `high` of its 95% interval by prompt, `dataset`, and the numbers of
        `comparisons` and `prompts`.

    Raises:
        ConfigError: No finite temperature above 0 fits: the rewards are always right, or no better than guessing.
    """
    data, differences = scores.comparisons, scores.margins
    temperature = best_temperature(differences, data.labels, data.weights)
    if not 0 < temperature < math.inf:
        reason = "always right" if temperature == 0 else "no better than guessing"
        raise ConfigError(f"--save_temperature: no temperature fits, since the rewards are {reason} on this data.")
    low, high = temperature_interval(differences, data.prompts, data.labels, data.weights)
    return {
        "temperature": temperature,
        "low": low,
        "high": high if math.isfinite(high) else None,
        "dataset": (scores.header.get("dataset") or {}).get("path"),
        "comparisons": len(differences),
        "prompts": len(set(data.prompts.tolist())),
    }


def save_temperature(folder: str | Path, evaluation: Evaluation) -> dict[str, Any]:
    """Write the temperature of an evaluation into the entry `calibration` of a model's `reward.json`.

    Returns:
        The entry, as `fit_temperature` returns it.

    Raises:
        ConfigError: The folder is not there, or no temperature fits.
    """
    from plaudit.checkpoint.metadata import read_metadata, write_metadata

    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ConfigError(f"--save_temperature: expected the model's folder, got {str(folder)!r}, which is none.")
    calibration = fit_temperature(evaluation.scores)
    write_metadata(path, read_metadata(path) | {"calibration": calibration})
    return calibration
