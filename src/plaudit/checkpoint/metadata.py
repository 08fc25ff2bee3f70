"""The metadata of a reward model's folder: `reward.json`, and the contract in `config.json`.

`reward.json` holds the facts that no other library records; docs/checkpoints.md lists its keys. The contract is the
part of `config.json` by which every engine reads the same score: one label, named; `problem_type="regression"`, without
which vLLM applies a sigmoid; `value_head_prefix`, `mean` and `std`, which OpenRLHF reads. (`architectures` and the
weights come from transformers, a pad token other than EOS from `plaudit.data.special_tokens`.)
"""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file, find_adapter_config_file

from plaudit.checkpoint.atomic import write_atomically
from plaudit.errors import CheckpointError

__all__ = [
    "HUB_OPTIONS",
    "METADATA_FILE",
    "fingerprint_digest",
    "library_versions",
    "read_metadata",
    "rendering_metadata",
    "set_contract",
    "template_hash",
    "training_dtype",
    "write_metadata",
]

METADATA_FILE = "reward.json"
# The arguments of `from_pretrained` that say where a file on the hub is, and how to get it.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
_LABEL = "LABEL_0"  # transformers' own name for a single label; pipelines print it


def set_contract(config: PretrainedConfig, head: str, mean: float = 0.0, std: float = 1.0) -> None:
    """Set the contract's entries in a sequence classifier's config, in place.

    Args:
        config: The config.
        head: The attribute that holds the head, such as "score".
        mean: Mean reward on the evaluation data, for `(reward - mean) / std`; 0 and 1 change nothing.
        std: Standard deviation of the rewards there.
    """
    config.id2label = {0: _LABEL}
    config.label2id = {_LABEL: 0}
    config.problem_type = "regression"
    config.value_head_prefix = head
    config.mean, config.std = float(mean), float(std)


def write_metadata(folder: Path, metadata: dict[str, Any]) -> None:
    """Write `reward.json`, atomically."""
    write_atomically(folder / METADATA_FILE, json.dumps(metadata, indent=2, ensure_ascii=False) + "\n")


def read_metadata(path_or_id: str | Path, **hub: Any) -> dict[str, Any]:
    """Read `reward.json` from a folder or from the hub; return an empty dict where there is none.

    Args:
        path_or_id: The folder or hub id.
        **hub: `revision`, `subfolder`, `token`, ..., as for `from_pretrained`.

    Raises:
        CheckpointError: The file is cut short, or is something else.
    """
    try:
        path = cached_file(str(path_or_id), METADATA_FILE, **hub)
    except OSError:  # there is no such file or place, or the hub cannot be reached
        return {}
    try:
        metadata = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path} is not whole, or not the metadata of a reward model. Restore or remove it.")
    return metadata


def training_dtype(path_or_id: str | Path, **hub: Any) -> str:
    """Return the precision that an adapter's base was loaded in for training, or "auto" (as it is stored).

    A float32 run on a bf16 base computes in float32: with the base loaded as it is stored, scores would be rounded.
    A whole model is stored in the precision of training, so it gets "auto" too. `hub` is as in `read_metadata`.
    """
    try:
        is_adapter = find_adapter_config_file(str(path_or_id), **hub) is not None
    except OSError:  # no such place: loading will raise
        return "auto"
    return read_metadata(path_or_id, **hub).get("training", {}).get("weights", "auto") if is_adapter else "auto"


def fingerprint_digest(fingerprint: Any) -> str:
    """Return 16 hexadecimal digits of the hash of the entry `fingerprint` of `reward.json`."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide what a model scores."""
    return {name: version(name) for name in ("plaudit", "transformers", "peft", "tokenizers", "torch")}


def rendering_metadata(
    tokenizer: PreTrainedTokenizerBase, rendered: list[int], *, conversational: bool, max_length: int | None
) -> dict[str, Any]:
    """Describe how text becomes token ids, for `reward.json`.

    Args:
        tokenizer: The model's tokenizer.
        rendered: The token ids of any text or conversation; BOS and EOS are recorded if they are there.
        conversational: Whether the model was trained on conversations.
        max_length: The most tokens of a training sequence.
    """
    return {
        "sequences": "conversations" if conversational else "texts",
        "chat_template": template_hash(tokenizer),
        "bos": tokenizer.bos_token if rendered[:1] == [tokenizer.bos_token_id] else None,
        "eos": tokenizer.eos_token if tokenizer.eos_token_id in rendered[-2:] else None,
        "pad": tokenizer.pad_token,
        "max_length": max_length,
    }


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the SHA-256 of the chat template; `None` where there is none."""
    template = tokenizer.chat_template
    if not template:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
