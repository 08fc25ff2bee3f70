"""`reward.json`: what a reward model's folder says of itself that no other library reads.

versions        of Plaudit and the libraries below it
loss_type, ...  the loss, and with ties its threshold
rendering       how text became ids: the template's hash, BOS, EOS, pad, max_length
head            its name and the precision it was trained in
training        precision of the weights and of the run, attention kernel, layout
quantization    of the base model, if it was quantised
rewards         their mean and standard deviation, and on what
fingerprint     probes with their rewards (`plaudit.checkpoint.fingerprint`)
verification    what came of the last reload (`plaudit.checkpoint.verify`)
"""

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file, find_adapter_config_file

from plaudit.errors import CheckpointError

__all__ = [
    "FILE",
    "describe_rendering",
    "describe_versions",
    "hash_of_template",
    "read_description",
    "write_description",
]

FILE = "reward.json"


def write_description(folder: Path, description: dict[str, Any]) -> None:
    """Write `reward.json`; one that stands there is replaced in one move."""
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    staged = folder / f"_{FILE}"
    staged.write_text(text, encoding="utf-8")
    os.replace(staged, folder / FILE)


def read_description(path_or_id: str | Path, **hub: Any) -> dict[str, Any]:
    """What `reward.json` says, in a folder or on the hub; nothing where there is none.

    Args:
        path_or_id: The folder or hub id.
        **hub: Which commit and folder of it, as for `from_pretrained`: `revision`, `subfolder`, `token`, ...

    Raises:
        CheckpointError: It is cut off, or something else.
    """
    try:
        path = cached_file(str(path_or_id), FILE, _raise_exceptions_for_missing_entries=False, **hub)
    except OSError:  # the hub cannot be asked, or there is no such place
        return {}
    if path is None:
        return {}
    try:
        described = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        described = None
    if not isinstance(described, dict):
        raise CheckpointError(f"{path} is not whole, or no description of a reward model. Put it back, or remove it.")
    return described


def trained_in(path_or_id: str | Path, **hub: Any) -> str:
    """The precision that an adapter's base was loaded in for training; "auto" (the checkpoint's own) elsewhere.

    A float32 run on a bf16 checkpoint computes in float32: loaded as it is stored, its scores would move by roundings.
    """
    try:
        adapter = find_adapter_config_file(str(path_or_id), **hub)
    except OSError:  # no such place, of which loading will tell
        return "auto"
    if adapter is None:
        return "auto"
    return read_description(path_or_id, **hub).get("training", {}).get("weights", "auto")


def describe_versions() -> dict[str, str]:
    """The versions that decide what a model scores."""
    return {name: version(name) for name in ("plaudit", "transformers", "peft", "tokenizers", "torch")}


def describe_rendering(
    tokenizer: PreTrainedTokenizerBase, rendered: list[int], *, conversational: bool, max_length: int | None
) -> dict[str, Any]:
    """How text becomes ids.

    Args:
        tokenizer: The model's tokenizer.
        rendered: The ids of any text or conversation: BOS and EOS are said as they stand there.
        conversational: Whether the model was trained on conversations.
        max_length: The most tokens of a training sequence.
    """
    return {
        "sequences": "conversations" if conversational else "texts",
        "chat_template": hash_of_template(tokenizer),
        "bos": tokenizer.bos_token if rendered[:1] == [tokenizer.bos_token_id] else None,
        "eos": tokenizer.eos_token if tokenizer.eos_token_id in rendered[-2:] else None,
        "pad": tokenizer.pad_token,
        "max_length": max_length,
    }


def hash_of_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """SHA-256 of the chat template; `None` where there is none."""
    template = tokenizer.chat_template
    if not template:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
