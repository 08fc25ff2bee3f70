"""Token ids in, rewards out: which sequences make a batch, in which layout. It knows no text and no tokenizer."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import PreTrainedModel

from plaudit.errors import ModelError
from plaudit.forest import attention
from plaudit.forest.trie import SHARED_TOKENS, common_tokens
from plaudit.models.adapters import base_model
from plaudit.models.equivalence import branching_pair, layouts_differ, probe_size, reason_for_padding
from plaudit.models.inputs import forest_inputs, padded_inputs
from plaudit.models.load import embedding_rows
from plaudit.models.precision import compute_dtype
from plaudit.models.reward_head import bind_reward_forward, class_forward, has_reward_forward

__all__ = ["ScoringEngine"]

logger = logging.getLogger(__name__)

_PROBED = 4  # sequences on which the layouts are compared before the first forest counts
_SHORT = 64  # tokens of a sequence, where whole ones do not fit into memory together

Ids = Sequence[int]


class ScoringEngine:
    """Runs a reward model over batches of sequences, as forests where the model allows it; for one thread at a time.

    Args:
        model: A sequence classifier with one label, or a PEFT model of one. Changed in place.
        max_tokens_per_batch: Distinct tokens of a batch; padded, all positions. A longer sequence runs alone.

    Attributes:
        layout: "forest", "padded", or "alone": each sequence by itself. The first sequences are scored in two of them:
            where they differ, it is the one that comes later here.
    """

    def __init__(self, model: "PreTrainedModel | PeftModel", max_tokens_per_batch: int) -> None:
        base = base_model(model)
        bind_reward_forward(base)
        self.model, self.max_tokens_per_batch = model.eval(), max_tokens_per_batch
        self._turn = threading.Lock()
        self.layout, self._is_compared = "padded", False
        self._pad = _pad_of(base)
        self._known: int | None = None
        with suppress(NotImplementedError, AttributeError):  # Canine hashes characters
            self._known = embedding_rows(base)
        if reason_for_padding(model) is None:
            attention.enable(base)
            self.layout = "forest"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_turn"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._turn = threading.Lock()
        base = base_model(self.model)
        if attention.enabled_backend(base) is not None:
            attention.enable(base)  # registered by name, which a process that unpickles does not know

    def score(
        self, sequences: Sequence[Ids], progress: Callable[[int], object] = lambda _: None
    ) -> NDArray[np.float32]:
        """Rewards [N] of N lists of one or more ids, float32, in the order given.

        Args:
            sequences: The lists.
            progress: Called after each batch with the number of its sequences.

        Raises:
            ModelError: A sequence alone does not fit into memory, it has a token that the model does not
                know, or the model's own code gives no reward.
        """
        arrays = [np.asarray(ids, dtype=np.int64) for ids in sequences]
        self._check(arrays)
        # The first call changes the layout, and the weights for a while; one that runs out of memory, the batches.
        with self._turn, _as_loaded(self.model):
            return self._score(arrays, progress)

    def _check(self, arrays: list[NDArray[np.int64]]) -> None:
        greatest = max((int(ids.max(initial=0)) for ids in arrays), default=0)
        if self._known is not None and greatest >= self._known:  # a GPU would end the process, and name no reason
            raise ModelError(
                f"a sequence has the token id {greatest}, and the model's embedding ends at {self._known - 1}. The "
                f"tokenizer is of another model, or got tokens that the model did not."
            )

    def _score(self, arrays: list[NDArray[np.int64]], progress: Callable[[int], object]) -> NDArray[np.float32]:
        rewards = np.zeros(len(arrays), dtype=np.float32)
        if not self._is_compared and arrays:
            short = False
            try:
                self._is_compared = self._compare(arrays)
            except torch.OutOfMemoryError:  # some fit one by one, and of one that does not the batches tell
                short = True
            if short:  # outside, since an exception holds the tensors that it came from
                self._is_compared = self._compare([ids[:_SHORT] for ids in arrays[:_PROBED]])
        waiting = set(range(len(arrays)))
        while waiting:
            for batch in self._batches(arrays, sorted(waiting)):
                held = [arrays[n] for n in batch]
                try:
                    rewards[batch] = self._run(held, self.layout).cpu().numpy()
                except torch.OutOfMemoryError:
                    self._make_batches_smaller(held)
                    break
                waiting.difference_update(batch)
                progress(len(batch))
        return rewards

    def _make_batches_smaller(self, failed: list[NDArray[np.int64]]) -> None:
        device = self.model.device
        if len(failed) == 1:
            raise ModelError(
                f"a sequence of {len(failed[0]):,} tokens alone does not fit into the memory of {device}. Lower "
                f"`max_length`, load the model in a smaller `dtype`, or take a device with more memory."
            )
        self.max_tokens_per_batch = max(self.max_tokens_per_batch // 2, 1)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning(
            "a batch of %d sequences does not fit into the memory of %s: going on with max_tokens_per_batch=%d",
            len(failed), device, self.max_tokens_per_batch,
        )  # fmt: skip

    def _run(self, sequences: list[NDArray[np.int64]], layout: str) -> torch.Tensor:
        if layout == "alone":
            return torch.cat([self._run([each], "padded") for each in sequences])
        # Each is a row of its own: sequences share what pays to be shared, be it of one prompt or of two.
        rows = range(len(sequences))
        inputs = forest_inputs(sequences, rows) if layout == "forest" else padded_inputs(sequences, self._pad)
        device = self.model.device
        outputs = self.model(**{name: tensor.to(device) for name, tensor in inputs.items()})
        rewards = getattr(outputs, "logits", None)
        if rewards is None or rewards.numel() != len(sequences):
            got = "none" if rewards is None else f"a shape of {list(rewards.shape)}"
            raise ModelError(
                f"{type(base_model(self.model)).__name__}: expected `logits` with one reward for each of "
                f"{len(sequences)} sequences, got {got}. It is no reward model that Plaudit can score with."
            )
        return rewards.float().reshape(-1)

    # Batches

    def _batches(self, arrays: list[NDArray[np.int64]], numbers: list[int]) -> Iterator[list[int]]:
        """Those with these numbers, in batches."""
        lengths = {number: len(arrays[number]) for number in numbers}
        if self.layout == "forest":
            order, costs = _in_order_of_prefixes(arrays, numbers)
            yield from _filled(order, costs, lengths, self.max_tokens_per_batch)
        else:
            yield from _of_like_length(lengths, self.max_tokens_per_batch if self.layout == "padded" else 1)

    # Which layout

    def _compare(self, arrays: list[NDArray[np.int64]]) -> bool:
        """Score a few sequences in two ways; what they differ by decides for all that come. Whether they could tell."""
        base = base_model(self.model)
        few = arrays[: probe_size([len(ids) for ids in arrays[:_PROBED]])]
        if has_reward_forward(base) and not type(base).forward.__module__.startswith("transformers."):
            self._compare_with_its_own_forward(base, few)
        if self.layout == "forest":
            probed = few + branching_pair(
                arrays[0], getattr(base.config.get_text_config(), "max_position_embeddings", None)
            )
            if reason := self._difference(lambda layout: self._run(probed, layout), "padded", "forest"):
                self.layout = "padded"
                logger.warning("scoring padded batches, since %s", reason)
        if self.layout != "padded" or has_reward_forward(base):  # ours reads past no padding, whatever the token
            return True
        probed = [*few, np.append(few[0][: len(few[0]) // 2], few[0][-1])]
        if reason := self._difference(lambda layout: self._run(probed, layout), "alone", "padded"):
            self.layout = "alone"
            logger.warning("scoring each sequence alone, which is slow, since padding changes rewards: %s", reason)
        return len(set(map(len, probed))) > 1

    def _compare_with_its_own_forward(self, base: PreTrainedModel, probed: list[NDArray[np.int64]]) -> None:
        """A model that ships its own code may read its reward elsewhere, or change it: then its own forward counts."""

        def score(whose: str) -> torch.Tensor:
            if whose == "ours":
                return self._run(probed, "alone")
            with class_forward(base):
                return self._run(probed, "alone")

        if reason := self._difference(score, "its own", "ours"):
            vars(base).pop("forward")
            self.layout = "padded"
            logger.warning("scoring with the forward that %s ships, since %s", type(base).__name__, reason)

    def _difference(self, score: Callable[[str], torch.Tensor], reference: str, candidate: str) -> str | None:
        dtype = compute_dtype(base_model(self.model))
        return layouts_differ(
            self.model, lambda layout, _: score(layout), dtype=dtype, reference=reference, candidate=candidate
        )


def _pad_of(model: PreTrainedModel) -> int:
    """What a forward that is not ours may look for to tell where a sequence ends."""
    config = model.config.get_text_config()
    pad = getattr(config, "pad_token_id", None)
    return pad if isinstance(pad, int) and 0 <= pad < (getattr(config, "vocab_size", None) or pad + 1) else 0


@contextmanager
def _as_loaded(model: "PreTrainedModel | PeftModel") -> Iterator[None]:
    """The model without dropout and in its own precision, whatever the code around it trains or computes in."""
    training = [module for module in model.modules() if module.training] if model.training else []
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        for module in training:
            module.training = True


def _in_order_of_prefixes(arrays: list[NDArray[np.int64]], numbers: list[int]) -> tuple[list[int], list[int]]:
    """The numbers with like beginnings next to each other, and how many of each one's tokens the one before lacks."""
    order = sorted(numbers, key=lambda number: arrays[number].tobytes())  # eight bytes an id, in whatever order
    costs = [len(arrays[number]) for number in order]
    for place in range(1, len(order)):
        shared = common_tokens(arrays[order[place - 1]], arrays[order[place]])
        if shared >= SHARED_TOKENS:
            costs[place] -= shared
    return order, costs


def _filled(order: list[int], costs: list[int], lengths: dict[int, int], budget: int) -> Iterator[list[int]]:
    """Consecutive sequences up to the budget; the first of a batch counts whole, since nothing before it is there."""
    batch: list[int] = []
    used = 0
    for number, cost in zip(order, costs, strict=True):
        if batch and used + cost > budget:
            yield batch
            batch, used = [], 0
        used += cost if batch else lengths[number]
        batch.append(number)
    if batch:
        yield batch


def _of_like_length(lengths: dict[int, int], budget: int) -> Iterator[list[int]]:
    """Sequences of like length, at most `budget` positions with their padding (or one sequence)."""
    batch: list[int] = []
    for number in sorted(lengths, key=lengths.__getitem__, reverse=True):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
