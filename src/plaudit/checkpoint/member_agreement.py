"""The agreement of the members of an ensemble: the same text must become the same token ids for each of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from plaudit.checkpoint.fingerprint import probe_sequences
from plaudit.checkpoint.metadata import fingerprint_digest, read_metadata, template_hash
from plaudit.data.render import render
from plaudit.errors import ModelError
from plaudit.models.load import load_tokenizer

__all__ = ["SavedMember", "check_agreement"]

_RECORDED = ("sequences", "bos", "eos", "max_length")  # the entries of `rendering` in reward.json that are compared


@dataclass(frozen=True)
class SavedMember:
    """The parts of a saved model that decide whether it can be a member beside others, read without its weights.

    Attributes:
        path: The folder or hub id.
        tokenizer: Its tokenizer.
        metadata: The content of its `reward.json`; empty for a model of another library.
    """

    path: str
    tokenizer: PreTrainedTokenizerBase
    metadata: dict[str, Any]

    @classmethod
    def read(cls, path: str, *, trust_remote_code: bool = False, **hub: Any) -> "SavedMember":
        """Read tokenizer and metadata; `hub` as for `from_pretrained`.

        Raises:
            ModelError: There is no tokenizer.
            CheckpointError: `reward.json` is damaged.
        """
        tokenizer = load_tokenizer(path, model_init_kwargs=hub, trust_remote_code=trust_remote_code)
        return cls(path, tokenizer, read_metadata(path, **hub))

    @property
    def digest(self) -> str | None:
        """The digest of the fingerprint, by which other weights are told apart; `None` if none was saved."""
        fingerprint = self.metadata.get("fingerprint")
        return fingerprint_digest(fingerprint) if fingerprint else None

    @property
    def scale(self) -> tuple[float, float] | None:
        """Mean and standard deviation of the rewards that the training run measured; `None` if it measured none."""
        rewards = self.metadata.get("rewards") or {"of": "nothing"}
        return None if rewards.get("of") == "nothing" or not rewards["std"] > 0 else (rewards["mean"], rewards["std"])

    @property
    def rendering(self) -> dict[str, Any]:
        """The entry `rendering` of `reward.json`; empty if there is none."""
        return self.metadata.get("rendering") or {}


def check_agreement(members: Sequence[SavedMember]) -> None:
    """Raise unless all members make the same token ids of the same text. The pad token may differ: no reward reads it.

    Raises:
        ModelError: Two members differ; the message names them and says how.
    """
    for other in members[1:]:
        if found := _difference(members[0], other):
            raise ModelError(
                f"{members[0].path} and {other.path} cannot be members of one ensemble, since they read text in two "
                f"ways: {found}. Members must agree in tokenizer, chat template and the form of their training data."
            )


def _difference(one: SavedMember, other: SavedMember) -> str | None:
    """Return how two members differ, in words."""
    for name in _RECORDED:
        first, second = one.rendering.get(name), other.rendering.get(name)
        is_known = one.rendering and other.rendering and (name in ("bos", "eos") or None not in (first, second))
        if is_known and first != second:
            return f"`{name}` of reward.json is {first!r} for the one and {second!r} for the other"
    if template_hash(one.tokenizer) != template_hash(other.tokenizer):
        return "their chat templates are not the same"
    for name in ("bos_token", "eos_token", "cls_token"):
        first, second = getattr(one.tokenizer, name), getattr(other.tokenizer, name)
        if first != second:
            return f"the {name} is {first!r} for the one and {second!r} for the other"
    for conversational in (False, True) if one.tokenizer.chat_template else (False,):
        probes = probe_sequences(one.tokenizer, conversational=conversational)
        for probe, first, second in zip(
            probes, render(one.tokenizer, probes), render(other.tokenizer, probes), strict=True
        ):
            if first != second:
                return (
                    f"{probe!r:.80} becomes {len(first)} token ids for the one and {len(second)} others for the other"
                )
    return None
