"""Checks of the files of a saved reward model against the contract, layer by layer, without loading the model."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from plaudit.checkpoint.heads_file import HEADS_FILE, SavedHeads
from plaudit.checkpoint.laplace_file import LAPLACE_FILE, SavedLaplace
from plaudit.checkpoint.metadata import read_metadata, template_hash
from plaudit.errors import CheckpointError, ModelError
from plaudit.models.load import load_tokenizer
from plaudit.models.reward_head import KNOWN_HEADS

__all__ = ["BASE_TOKENIZER", "Finding", "SavedModel", "inspect_files"]

BASE_TOKENIZER = "base tokenizer"


@dataclass(frozen=True)
class Finding:
    """The result of checking one layer of the contract.

    Attributes:
        layer: The layer's name.
        holds: Whether it holds; `None` where that is open.
        message: The evidence, and the remedy if the layer does not hold.
    """

    layer: str
    holds: bool | None
    message: str


@dataclass
class SavedModel:
    """The files of a saved reward model, read when they are asked for.

    Attributes:
        folder: The folder of a whole model or of an adapter.
        trust_remote_code: Allow a tokenizer that ships its own code.
    """

    folder: Path
    trust_remote_code: bool = False

    @cached_property
    def adapter(self) -> dict[str, Any] | None:
        """`adapter_config.json`, if the folder holds an adapter."""
        path = self.folder / "adapter_config.json"
        return _read_json(path) if path.is_file() else None

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`; empty for an adapter, whose folder has none."""
        return _read_json(self.folder / "config.json") if self.adapter is None else {}

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """`reward.json`; empty if there is none."""
        return read_metadata(self.folder)

    @cached_property
    def shapes(self) -> dict[str, list[int]]:
        """The shape of every weight by its name, from the headers of the safetensors files that a loader takes."""
        name = "model.safetensors" if self.adapter is None else "adapter_model.safetensors"
        index = self.folder / f"{name}.index.json"
        if (self.folder / name).is_file() or not index.is_file():
            return _read_shapes(self.folder / name)
        shards = sorted(set(_read_json(index)["weight_map"].values()))
        return {name: shape for shard in shards for name, shape in _read_shapes(self.folder / shard).items()}

    def weight(self, name: str) -> torch.Tensor:
        """Return one of the weights that `shapes` names."""
        for path in sorted(self.folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                if name in file.keys():  # noqa: SIM118  # not a dict
                    return file.get_tensor(name)
        raise CheckpointError(f"{self.folder}: there is no weight {name}. Copy or save the weights again.")

    @property
    def members_file(self) -> Path | None:
        """The file of the members of an ensemble on one backbone, if the folder holds it."""
        path = self.folder / HEADS_FILE
        return path if path.is_file() else None

    @property
    def has_tokenizer(self) -> bool:
        """True if the folder holds a tokenizer."""
        return (self.folder / "tokenizer_config.json").is_file()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer in the folder."""
        if not self.has_tokenizer:
            raise CheckpointError(f"{self.folder}: there is no tokenizer. Save it there: tokenizer.save_pretrained().")
        return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code)

    @property
    def head(self) -> str | None:
        """The name of the head's weight, preferably one of a single row; `None` if no weight is named like a head."""
        matrices = [name for name, shape in self.shapes.items() if name.endswith("weight") and len(shape) == 2]

        def of_modules(modules: set[str | None]) -> list[str]:
            return [name for name in matrices if any(f".{module}." in f".{name}" for module in modules)]

        named = {self.config.get("value_head_prefix"), *KNOWN_HEADS}
        kept = named | set((self.adapter or {}).get("modules_to_save") or ())  # holds the head, and perhaps others
        heads = [name for name in of_modules(kept) if self.shapes[name][0] == 1] or of_modules(named)
        return max(heads, key=len, default=None)

    @cached_property
    def base(self) -> "SavedModel | None":
        """An adapter's base model, if its safetensors files are on this machine."""
        name, revision = (self.adapter or {}).get("base_model_name_or_path"), (self.adapter or {}).get("revision")
        if not name:
            return None
        with contextlib.suppress(CheckpointError, ValueError):  # the latter for a name that the hub could not have
            config = None if Path(name).is_dir() else try_to_load_from_cache(name, "config.json", revision=revision)
            base = SavedModel(Path(config).parent if isinstance(config, str) else Path(name))
            return base if base.shapes else None
        return None

    def parameters(self) -> int:
        """Count the parameters, including those of an adapter's base that is on this machine."""
        count = sum(prod(shape) for shape in self.shapes.values())
        return count + (0 if self.base is None else self.base.parameters())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent}: there is neither config.json nor adapter_config.json.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not whole: {error}. Save the model again.") from error


def _read_shapes(path: Path) -> dict[str, list[int]]:
    """Read names and shapes from a safetensors file's header, which also shows whether the file is cut short."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there are no such weights. Copy or save them again.")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  # not a dict
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not whole ({error}). Copy or save it again.") from error


def inspect_files(saved: SavedModel) -> list[Finding]:
    """Check each layer of the contract that concerns the model; stop at one whose files cannot be read."""
    layers: tuple[tuple[str, Callable[[SavedModel], tuple[bool | None, str] | None]], ...] = (
        ("weights", _weights), ("labels", _labels), ("head", _head), ("tokenizer", _tokenizer), ("padding", _padding),
        ("configuration", _configuration), ("members", _members),
        ("posterior", _posterior), (BASE_TOKENIZER, _base_tokenizer),
    )  # fmt: skip
    findings: list[Finding] = []
    for layer, check in layers:
        try:
            found = check(saved)
        except (CheckpointError, OSError, ValueError) as error:
            return [*findings, Finding(layer, False, str(error))]
        if found is not None:
            findings.append(Finding(layer, *found))
    return findings


def _weights(saved: SavedModel) -> tuple[bool, str]:
    names = list(saved.shapes)
    architectures = saved.config.get("architectures") or []
    if any("ForCausalLM" in each for each in architectures) and saved.head is None:
        raise CheckpointError(f"this is a language model ({architectures[0]}) and no reward model: train one from it.")
    if any(name.split(".")[-2:-1] == ["lm_head"] for name in names):
        return False, "they hold an `lm_head`: this is a language model, or was saved as one. Train a reward model."
    if saved.adapter is None and not any("ForSequenceClassification" in each for each in architectures):
        return False, f"config.json has architectures={architectures}, expected one <X>ForSequenceClassification."
    return True, f"{len(names):,} tensors, none cut short"


def _labels(saved: SavedModel) -> tuple[bool, str]:
    if saved.adapter is not None:
        task = saved.adapter.get("task_type")
        if task != "SEQ_CLS":
            return False, f"the adapter's task type is {task}, expected SEQ_CLS: it belongs to another kind of model."
        return True, "the adapter's task type is SEQ_CLS"
    labels = saved.config.get("id2label", {"0": "", "1": ""})  # transformers' own default is two
    if len(labels) != 1:
        return False, f"config.json gives the head {len(labels)} labels: a plain load fails or adds a random head."
    return True, "one label"


def _head(saved: SavedModel) -> tuple[bool, str]:
    if saved.head is None and saved.base is not None and saved.base.head is not None:
        return _head(saved.base)  # trained before, and not by this adapter
    if saved.head is None:
        what = "the adapter was saved without its head" if saved.adapter else "no weight has the name of a head"
        return False, f"{what} ({' or '.join(KNOWN_HEADS)}): a plain load makes a random one. Copy or save it again."
    shape = saved.shapes[saved.head]
    if shape[0] != 1:
        return False, f"{saved.head} is {shape}, expected [1, {shape[1]}]: one reward for each sequence."
    return True, f"{saved.head} {shape}"


def _tokenizer(saved: SavedModel) -> tuple[bool, str]:
    recorded, tokenizer = saved.metadata.get("rendering") or {}, saved.tokenizer
    if recorded and recorded.get("chat_template") != template_hash(tokenizer):
        return False, "its chat template is not the one of training (reward.json has the hash). Restore that one."
    tokens = {name: getattr(tokenizer, f"{name}_token") for name in ("bos", "eos", "pad")}
    changed = [
        f"{name} was {recorded[name]!r} and is {token!r}"
        for name, token in tokens.items()
        if recorded.get(name) is not None and recorded[name] != token
    ]
    if changed:
        return False, f"{'; '.join(changed)}. Restore the tokenizer of training."
    return True, f"{len(tokenizer):,} tokens, {'with its' if tokenizer.chat_template else 'no'} chat template"


def _padding(saved: SavedModel) -> tuple[bool, str]:
    tokenizer = saved.tokenizer
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    if pad is None:
        return False, "the tokenizer has no pad token: engines pad with EOS, and read the token before the last."
    if pad == eos:
        return False, f"pad is EOS ({tokenizer.pad_token!r}): plain transformers reads the token before the last."
    configured = (saved.config.get("text_config") or saved.config).get("pad_token_id", saved.config.get("pad_token_id"))
    if saved.adapter is None and configured != pad:
        return False, f"config.json has pad_token_id={configured}, the tokenizer {pad}: padding would be read as text."
    return True, f"{tokenizer.pad_token!r} (id {pad}), which is not EOS"


def _configuration(saved: SavedModel) -> tuple[bool, str] | None:
    if saved.adapter is not None:
        return None
    lacking = []
    if saved.config.get("problem_type") != "regression":
        lacking.append('problem_type="regression" (without it vLLM answers sigmoids)')
    if not {"value_head_prefix", "mean", "std"} <= saved.config.keys():
        lacking.append("value_head_prefix, mean and std (which OpenRLHF reads)")
    if lacking:
        return False, f"config.json lacks {' and '.join(lacking)}. Add it."
    return True, "config.json has what vLLM and OpenRLHF read"


def _members(saved: SavedModel) -> tuple[bool, str] | None:
    """Check the file of the members of an ensemble; `None` where nothing is wrong, since `verify` proves the rest."""
    recorded, heads = saved.metadata.get("members"), SavedHeads.read(saved.folder)
    if heads is None and recorded:
        return False, f"reward.json names {recorded} members, and {HEADS_FILE} is missing. Copy it, or save it again."
    if heads is None or saved.head is None or heads.weight.shape[1] == saved.shapes[saved.head][1]:
        return None
    return False, (
        f"{HEADS_FILE} holds members of {heads.weight.shape[1]} features, and the model's head has "
        f"{saved.shapes[saved.head][1]}: it is of another model. Copy the model's own."
    )


def _posterior(saved: SavedModel) -> tuple[bool, str] | None:
    """Check that a posterior of the head, if there is one, was fitted for the head that is saved."""
    posterior = SavedLaplace.read(saved.folder)
    if posterior is None or saved.head is None:
        return None
    head = saved.weight(saved.head)
    if not posterior.is_of_head(head, head.dtype):
        remedy = "Run `plaudit laplace MODEL DATA` again, or remove it."
        return False, f"{LAPLACE_FILE} was fitted for another head. {remedy}"
    return True, f"{LAPLACE_FILE} was fitted for this head, on {posterior.measured_on}"


def _base_tokenizer(saved: SavedModel) -> tuple[bool | None, str] | None:
    """Compare the tokenizers of an adapter and of its base, which TRL's GRPO and RLOO load instead."""
    if saved.adapter is None:
        return None
    base = saved.adapter.get("base_model_name_or_path")
    if not base:
        return None, "adapter_config.json names no base model, so the adapter cannot be loaded: name the base there."
    revision = {"revision": saved.adapter.get("revision")}
    try:
        theirs = load_tokenizer(base, model_init_kwargs=revision, trust_remote_code=saved.trust_remote_code)
    except ModelError as error:
        return None, str(error)
    own = saved.tokenizer
    pairs = {
        "chat template": (template_hash(own), template_hash(theirs)),
        "pad token": (own.pad_token, theirs.pad_token or theirs.eos_token),
        "EOS token": (own.eos_token, theirs.eos_token),
    }
    differing = [name for name, (one, other) in pairs.items() if one != other]
    if differing:
        return False, (
            f"{base} has another {' and another '.join(differing)} than the adapter. Engines that load the base's "
            f"tokenizer (TRL's GRPO and RLOO, given this folder) would score otherwise: merge the adapter first "
            f"(`plaudit merge`), or pass its tokenizer as `reward_processing_classes`."
        )
    return True, "the same as the adapter's"
