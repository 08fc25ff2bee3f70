"""An engine that scores with each member of an ensemble and returns their mean. The engine knows no text."""

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from plaudit.models.adapters import base_model, can_mix_adapters
from plaudit.models.precision import compute_dtype, rounding_tolerance

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from plaudit.engine import ScoringEngine

__all__ = ["EnsembleEngine"]

# Up to this many positions of a padded batch, before it is repeated for each adapter, one forward for four adapters was
# faster on a CPU than four: 1.9 to 3 times for 16 positions, 1.2 to 1.4 times for 128. Above, it was slower as often.
_MOST_MIXED_POSITIONS = 128


class EnsembleEngine:
    """Scores sequences of token ids with each of K members, and gives the columns [mean, member 1, ..., member K].

    Members that are adapters on one loaded base run one after the other, each in the layout of its engine. For few and
    short sequences they run in one padded batch, where PEFT can mix adapters (plain LoRA) and padding changes no
    reward; the first such batch, and the first with padding, are compared with one adapter after the other, and decide
    for all later ones.

    Args:
        engines: The engines of the loaded models.
        members: For each member the index of its engine, and the name of its adapter if the engine holds several.

    Attributes:
        vocabulary_size: One more than the greatest token id that all members take; `None` if any id will do.
    """

    def __init__(self, engines: "Sequence[ScoringEngine]", members: Sequence[tuple[int, str | None]]) -> None:
        self._engines, self._members = list(engines), list(members)
        sizes = [each.vocabulary_size for each in engines if each.vocabulary_size is not None]
        self.vocabulary_size = min(sizes, default=None)
        self._can_mix: dict[tuple[int, bool], bool] = {}  # by engine, and whether a batch has padding; once tried
        self._lock = threading.Lock()  # an adapter must stay active until its rewards are there

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @property
    def model(self) -> "PreTrainedModel | PeftModel":
        """The model of the first member."""
        return self._engines[0].model

    @property
    def num_columns(self) -> int:
        """The number of columns: the mean, and the K members."""
        return 1 + len(self._members)

    @property
    def layout(self) -> str:
        """The layout of the batches: that of the engine which shares the least."""
        layouts = {each.layout for each in self._engines}
        return next(name for name in ("alone", "padded", "forest") if name in layouts)

    @property
    def max_tokens_per_batch(self) -> int:
        """The most tokens of a batch, of the engine that takes the fewest."""
        return min(each.max_tokens_per_batch for each in self._engines)

    def score(
        self, sequences: Sequence[Sequence[int]], progress: Callable[[int], object] = lambda _: None
    ) -> NDArray[np.float32]:
        """Return the means [N] of the members' rewards; arguments and errors are those of `score_columns`."""
        return self.score_columns(sequences, progress)[:, 0]

    def score_columns(
        self, sequences: Sequence[Sequence[int]], progress: Callable[[int], object] = lambda _: None
    ) -> NDArray[np.float32]:
        """Return the columns [N, 1 + K] of N sequences, float32, in the order given.

        Args:
            sequences: N lists of one or more token ids.
            progress: Called with numbers of sequences, which add up to N; one counts once all members have scored it.

        Raises:
            ModelError: As for `ScoringEngine.score_columns`.
        """
        rewards = np.zeros((len(sequences), len(self._members)), dtype=np.float32)
        report = _shared_progress(progress, len(self._members))
        lengths = {len(ids) for ids in sequences}
        positions = len(sequences) * max(lengths, default=0)
        with self._lock:
            for number, engine in enumerate(self._engines):
                columns = [column for column, (owner, _) in enumerate(self._members) if owner == number]
                adapters = [name for owner, name in self._members if owner == number and name is not None]
                if not adapters:
                    rewards[:, columns[0]] = engine.score(sequences, report)
                    continue
                kind = number, len(lengths) > 1
                is_small = len(adapters) > 1 and 0 < positions <= _MOST_MIXED_POSITIONS and engine.layout != "alone"
                if is_small and self._can_mix.get(kind):
                    rewards[:, columns] = engine.score_adapters(sequences, adapters)
                    report(len(sequences) * len(adapters))
                    continue
                for column, adapter in zip(columns, adapters, strict=True):
                    engine.model.set_adapter(adapter, inference_mode=True)
                    rewards[:, column] = engine.score(sequences, report)
                if is_small and kind not in self._can_mix:
                    self._can_mix[kind] = _mixes(engine, sequences, adapters, rewards[:, columns])
        return np.concatenate([rewards.mean(1, keepdims=True), rewards], axis=1)


def _mixes(
    engine: "ScoringEngine", sequences: Sequence[Sequence[int]], adapters: list[str], expected: NDArray[np.float32]
) -> bool:
    """Return whether the adapters can run in one batch, and have the expected rewards [N, K] there."""
    if not can_mix_adapters(engine.model):
        return False
    difference = np.abs(engine.score_adapters(sequences, adapters) - expected).max()
    allowed = rounding_tolerance(compute_dtype(base_model(engine.model)))
    return bool(difference <= allowed * np.sqrt(np.square(expected).mean()))


def _shared_progress(progress: Callable[[int], object], runs: int) -> Callable[[int], None]:
    """Return a function to call after batches of several runs, which calls `progress` with their share of N."""
    done = reported = 0

    def report(sequences: int) -> None:
        nonlocal done, reported
        done += sequences
        progress(done // runs - reported)
        reported = done // runs

    return report
