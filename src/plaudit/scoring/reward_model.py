"""`RewardModel`: score text the way the model was trained to."""

from collections.abc import Sequence as Rows
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plaudit.checkpoint.description import trained_in
from plaudit.data.formats import Sequence, check_sequence
from plaudit.data.rendering import render
from plaudit.errors import DataError
from plaudit.models.adapters import base_model
from plaudit.models.head import bind_reward_forward
from plaudit.models.load import load_model, load_tokenizer

__all__ = ["RewardModel"]


_TOKENS_PER_BATCH = 16_384  # padding included


class RewardModel:
    """A trained reward model and its tokenizer.

    Args:
        model: A sequence classifier with one label, or a PEFT model of one.
        tokenizer: Its tokenizer, with a chat template if conversations are to be scored.
    """

    def __init__(self, model: "PreTrainedModel | PeftModel", tokenizer: PreTrainedTokenizerBase) -> None:
        bind_reward_forward(base_model(model))
        self.model = model.eval()
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | Path, *, device: str | torch.device | None = None, dtype: str | torch.dtype = "auto"
    ) -> "RewardModel":
        """Load a saved reward model: a folder, an adapter's folder or a hub id.

        Args:
            path_or_id: Where it is.
            device: Where to run it; an accelerator if there is one, else the CPU.
            dtype: Precision of the weights; "auto" is that of the checkpoint, and of training for an adapter's base.

        Raises:
            ModelError: It is no reward model, or its tokenizer is missing.
        """
        name = str(Path(path_or_id).expanduser()) if str(path_or_id).startswith("~") else str(path_or_id)
        if dtype == "auto":
            dtype = trained_in(name)
        model = load_model(name, model_init_kwargs={"dtype": dtype}, is_trainable=False, new_head=False)
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return cls(model.to(device or accelerator or "cpu"), load_tokenizer(name))

    @torch.inference_mode()
    def score(self, sequences: Rows[Sequence], options: Rows[dict[str, Any]] | None = None) -> NDArray[np.float32]:
        """Rewards of whole texts or whole conversations.

        Args:
            sequences: N texts (prompt and response joined) or conversations (lists of messages).
            options: N dicts of keyword arguments for the chat template (`tools`, say), if any.

        Returns:
            N rewards in the order given, float32. The same sequence gets the same reward in any company, but for the
            last bits, which depend on the shape of the batch.

        Raises:
            DataError: It is a single text or conversation, or one of them is malformed or refused by the chat template.
        """
        if isinstance(sequences, str) or (len(sequences) and isinstance(sequences[0], dict)):
            raise DataError("expected a list of texts or of conversations, got a single one. Wrap it: score([...]).")
        for number, sequence in enumerate(sequences):
            check_sequence(sequence, number)
        ids = render(self.tokenizer, sequences, options)
        rewards = np.zeros(len(ids), dtype=np.float32)
        for batch in _batches([len(sequence) for sequence in ids], _TOKENS_PER_BATCH):
            rewards[batch] = self._score_batch([ids[n] for n in batch])
        return rewards

    def _score_batch(self, ids: list[list[int]]) -> NDArray[np.float32]:
        longest = max(map(len, ids))
        pad = self.tokenizer.pad_token_id or 0  # never read: the mask says where a sequence ends
        filled = [sequence + [pad] * (longest - len(sequence)) for sequence in ids]
        mask = [[1] * len(sequence) + [0] * (longest - len(sequence)) for sequence in ids]
        device = self.model.device
        inputs = {"input_ids": filled, "attention_mask": mask}
        outputs = self.model(**{name: torch.tensor(value, device=device) for name, value in inputs.items()})
        return outputs.logits.float().squeeze(-1).cpu().numpy()


def _batches(lengths: list[int], budget: int) -> list[list[int]]:
    """Indices in batches of like length, each at most `budget` tokens with its padding (or one sequence)."""
    batches: list[list[int]] = []
    for n in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > budget:
            batches.append([])
        batches[-1].append(n)
    return batches
