"""The scoring engine: sequences of token ids to rewards, in batches. The engine knows no text."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from plaudit.errors import ModelError
from plaudit.forest.trie import SHARED_TOKENS, common_tokens
from plaudit.models.adapters import base_model
from plaudit.models.cpu_allocator import keep_freed_memory
from plaudit.models.equivalence import reason_for_padding, settle_layout
from plaudit.models.inputs import forest_inputs, padded_inputs
from plaudit.models.load import embedding_rows
from plaudit.models.reward_head import bind_reward_forward, has_reward_forward, num_columns

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["ScoringEngine"]

logger = logging.getLogger(__name__)

_SHORT = 64  # tokens of a sequence to compare layouts on where whole sequences do not fit into memory

Array = NDArray[np.int64]  # the token ids of one sequence


class ScoringEngine:
    """Scores sequences of token ids in batches, as forests where the model allows it, one call at a time.

    Args:
        model: A sequence classifier with one label, or a PEFT model of one. Changed in place.
        max_tokens_per_batch: The most tokens of a forest, shared prefixes counted once, or positions of a padded batch.
            A longer sequence runs alone.

    Attributes:
        layout: "forest", "padded", or "alone" (each sequence by itself). The first sequences are scored in two layouts,
            and a later one of the three is taken where their rewards differ.
        vocabulary_size: One more than the greatest token id that the model takes; `None` if any id will do.
    """

    def __init__(self, model: "PreTrainedModel | PeftModel", max_tokens_per_batch: int) -> None:
        from plaudit.forest import attention  # late, since it imports the code of transformers' models

        base = base_model(model)
        # A class from outside transformers may read its reward elsewhere, or change it.
        bind_reward_forward(base, keep_forward=not type(base).forward.__module__.startswith("transformers."))
        if model.device.type == "cpu":
            keep_freed_memory()
        self.model, self.max_tokens_per_batch = model.eval(), max_tokens_per_batch
        self.layout, self._is_settled = "padded", False
        self._lock = threading.Lock()
        self._pad_id = _pad_id(base)
        self.vocabulary_size: int | None = None
        with suppress(NotImplementedError, AttributeError):  # Canine hashes characters and has no input embedding
            self.vocabulary_size = embedding_rows(base)
        if has_reward_forward(base) and reason_for_padding(model) is None:
            attention.enable(base)
            self.layout = "forest"

    @property
    def num_columns(self) -> int:
        """The number C of columns of each sequence: the reward, and those of the model's uncertainty if it has one."""
        return num_columns(base_model(self.model))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from plaudit.forest import attention  # late, since it imports the code of transformers' models

        self.__dict__.update(state)
        self._lock = threading.Lock()
        base = base_model(self.model)
        if attention.enabled_backend(base) is not None:
            attention.enable(base)  # its function must be registered by name in this process as well

    def score(
        self, sequences: Sequence[Sequence[int]], progress: Callable[[int], object] = lambda _: None
    ) -> NDArray[np.float32]:
        """Return the rewards [N] of N sequences, float32, in the order given; the first of their columns.

        Arguments and errors are those of `score_columns`.
        """
        return self.score_columns(sequences, progress)[:, 0]

    def score_columns(
        self, sequences: Sequence[Sequence[int]], progress: Callable[[int], object] = lambda _: None
    ) -> NDArray[np.float32]:
        """Return the columns [N, C] of N sequences, float32, in the order given.

        The first column is the reward. A model with an uncertainty has further ones, which `plaudit.uncertainty` reads.

        Args:
            sequences: N lists of one or more token ids.
            progress: Called after each batch with the number of its sequences.

        Raises:
            ModelError: A single sequence does not fit into memory, a token id lies outside the model's embedding, or
                the forward of the model gives no reward.
        """
        arrays = [np.asarray(ids, dtype=np.int64) for ids in sequences]
        self._check_ids(arrays)
        # The first call settles the layout, with the weights in float32 for a while; any call may shrink the batches.
        with self._lock, _evaluation_mode(self.model):
            if arrays and not self._is_settled:
                self._settle_layout(arrays)
            return self._score(arrays, progress)

    def score_adapters(self, sequences: Sequence[Sequence[int]], adapters: Sequence[str]) -> NDArray[np.float32]:
        """Return the rewards [N, K] of N sequences with each of K adapters, all in one padded batch of N * K rows.

        Args:
            sequences: N lists of one or more token ids, few and short: the batch is run whole.
            adapters: Names of K adapters of the model, of which `can_mix_adapters` holds.

        Raises:
            ModelError: A token id lies outside the model's embedding.
        """
        arrays = [np.asarray(ids, dtype=np.int64) for ids in sequences]
        self._check_ids(arrays)
        names = [name for name in adapters for _ in arrays]
        inputs = padded_inputs(arrays * len(adapters), self._pad_id)
        with self._lock, _evaluation_mode(self.model):
            tensors = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
            rewards = self.model(**tensors, adapter_names=names).logits[:, 0].float()
            return rewards.view(len(adapters), len(arrays)).T.cpu().numpy()

    def _check_ids(self, arrays: list[Array]) -> None:
        """Refuse a token id outside the embedding, with which a GPU would abort the process."""
        greatest = max((int(ids.max(initial=0)) for ids in arrays), default=0)
        if self.vocabulary_size is not None and greatest >= self.vocabulary_size:
            raise ModelError(
                f"a sequence has the token id {greatest}, and the model's embedding ends at "
                f"{self.vocabulary_size - 1}. The tokenizer is of another model, or got tokens that the model did not."
            )

    def _settle_layout(self, arrays: list[Array]) -> None:
        """Choose the layout on whole sequences or, where these do not fit into memory together, on their beginnings."""
        for length in (None, _SHORT):
            try:
                probe = [ids[:length] for ids in arrays]
                self.layout, self._is_settled = settle_layout(
                    self.model, probe, lambda ids, layout: self._run(ids, layout)[:, 0], self.layout
                )
                return
            except torch.OutOfMemoryError:
                if length is not None:
                    raise

    def _score(self, arrays: list[Array], progress: Callable[[int], object]) -> NDArray[np.float32]:
        columns = np.zeros((len(arrays), self.num_columns), dtype=np.float32)
        waiting = set(range(len(arrays)))
        while waiting:
            for batch in self._batches(arrays, sorted(waiting)):
                sequences = [arrays[index] for index in batch]
                try:
                    columns[batch] = self._run(sequences, self.layout).cpu().numpy()
                except torch.OutOfMemoryError:
                    self._halve_budget(sequences)
                    break
                waiting.difference_update(batch)
                progress(len(batch))
        return columns

    def _halve_budget(self, failed: list[Array]) -> None:
        """Halve the tokens of a batch after one that did not fit into memory; raise if it was a single sequence."""
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

    def _run(self, sequences: list[Array], layout: str) -> torch.Tensor:
        """Return the columns [N, C] of one batch in a layout, in float32."""
        if layout == "alone":
            return torch.cat([self._run([ids], "padded") for ids in sequences])
        # Each sequence is a row of its own: prefixes are shared where that pays, across prompts as well.
        rows = range(len(sequences))
        inputs = forest_inputs(sequences, rows) if layout == "forest" else padded_inputs(sequences, self._pad_id)
        device = self.model.device
        outputs = self.model(**{name: tensor.to(device) for name, tensor in inputs.items()})
        columns = getattr(outputs, "logits", None)
        if columns is None or columns.numel() != len(sequences) * self.num_columns:
            got = "none" if columns is None else f"a shape of {list(columns.shape)}"
            raise ModelError(
                f"{type(base_model(self.model)).__name__}: expected `logits` with one reward for each of "
                f"{len(sequences)} sequences, got {got}. It is no reward model that Plaudit can score with."
            )
        return columns.float().reshape(len(sequences), self.num_columns)

    def _batches(self, arrays: list[Array], indices: list[int]) -> Iterator[list[int]]:
        """Group the sequences with the given indices into batches of at most `max_tokens_per_batch` tokens."""
        if self.layout == "forest":
            return _forest_batches(arrays, indices, self.max_tokens_per_batch)
        lengths = {index: len(arrays[index]) for index in indices}
        return _padded_batches(lengths, self.max_tokens_per_batch if self.layout == "padded" else 1)


def _forest_batches(arrays: list[Array], indices: list[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield batches of sequences in the order of their prefixes, so that those with a common prefix run together."""
    order = sorted(indices, key=lambda index: arrays[index].tobytes())
    batch: list[int] = []
    tokens = 0
    for index in order:
        length = len(arrays[index])
        shared = common_tokens(arrays[batch[-1]], arrays[index]) if batch else 0
        new_tokens = length - shared if shared >= SHARED_TOKENS else length
        if batch and tokens + new_tokens > max_tokens:
            yield batch
            batch, tokens, new_tokens = [], 0, length
        batch.append(index)
        tokens += new_tokens
    if batch:
        yield batch


def _padded_batches(lengths: dict[int, int], max_positions: int) -> Iterator[list[int]]:
    """Yield batches of sequences of similar length, longest first."""
    batch: list[int] = []
    for index in sorted(lengths, key=lengths.__getitem__, reverse=True):
        if batch and (len(batch) + 1) * lengths[batch[0]] > max_positions:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _pad_id(model: "PreTrainedModel") -> int:
    """Return the pad token of the configuration, which the forward of an encoder may look for; 0 if it names none."""
    config = model.config.get_text_config()
    pad = getattr(config, "pad_token_id", None)
    return pad if isinstance(pad, int) and 0 <= pad < (getattr(config, "vocab_size", None) or pad + 1) else 0


@contextmanager
def _evaluation_mode(model: "PreTrainedModel | PeftModel") -> Iterator[None]:
    """Turn dropout, autocast and autograd off within this context, whatever the code around it trains."""
    training = [module for module in model.modules() if module.training] if model.training else []
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        for module in training:
            module.training = True
