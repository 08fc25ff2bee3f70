"""What the files of a saved reward model say: the checkpoint contract, layer by layer, without loading the model."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from plaudit.checkpoint.metadata import read_metadata, template_hash
from plaudit.errors import CheckpointError, ModelError
from plaudit.models.load import load_tokenizer
from plaudit.models.reward_head import KNOWN_HEADS

__all__ = ["BASE_TOKENIZER", "Finding", "SavedModel", "inspect_files"]

BASE_TOKENIZER = "base tokenizer"


@dataclass(frozen=True)
class Finding:
    """What became of one layer of the contract.

    Attributes:
        layer: Its name.
        holds: Whether it holds; `None` where that could not be told.
        message: What was found, and what to do about it if it does not hold.
    """

    layer: str
    holds: bool | None
    message: str


@dataclass
class SavedModel:
    """The files of a saved reward model.

    Attributes:
        folder: Where they are.
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
        """`config.json`; an adapter's folder has none."""
        return _read_json(self.folder / "config.json") if self.adapter is None else {}

    @cached_property
    def description(self) -> dict[str, Any]:
        """`reward.json`, if there is one."""
        return read_metadata(self.folder)

    @cached_property
    def shapes(self) -> dict[str, list[int]]:
        """The name and shape of every weight, from the headers of the safetensors files that a loader takes."""
        name = "model.safetensors" if self.adapter is None else "adapter_model.safetensors"
        index = self.folder / f"{name}.index.json"
        if (self.folder / name).is_file() or not index.is_file():
            return shapes_of(self.folder / name)
        shards = sorted(set(_read_json(index)["weight_map"].values()))
        return {name: shape for shard in shards for name, shape in shapes_of(self.folder / shard).items()}

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer lies with the weights."""
        return (self.folder / "tokenizer_config.json").is_file()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that lies with the weights."""
        if not self.has_tokenizer:
            raise CheckpointError(f"{self.folder}: there is no tokenizer. Save it there: tokenizer.save_pretrained().")
        return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code)

    @property
    def head(self) -> str | None:
        """The head's weight among the names of the weights: the one of a single row, if there is one."""
        named = {self.config.get("value_head_prefix"), *KNOWN_HEADS}
        kept = named | set((self.adapter or {}).get("modules_to_save") or ())  # the head, and perhaps others
        heads = [name for name in self._matrices_of(kept) if self.shapes[name][0] == 1] or self._matrices_of(named)
        return max(heads, key=len, default=None)

    def _matrices_of(self, modules: set[str | None]) -> list[str]:
        matrices = [name for name, shape in self.shapes.items() if name.endswith("weight") and len(shape) == 2]
        return [name for name in matrices if any(f".{module}." in f".{name}" for module in modules)]

    @cached_property
    def base(self) -> "SavedModel | None":
        """An adapter's base model, where its weights lie on this machine and say their shapes."""
        described = self.adapter or {}
        name = described.get("base_model_name_or_path")
        base = SavedModel(_folder_of(name, described.get("revision"))) if name else None
        with contextlib.suppress(CheckpointError):
            return base if base and base.shapes else None
        return None

    def parameters(self) -> int:
        """How many numbers the weights are, those of an adapter's local base included."""
        count = sum(prod(shape) for shape in self.shapes.values())
        return count + (0 if self.base is None else self.base.parameters())


def _folder_of(name: str, revision: str | None) -> Path:
    if Path(name).is_dir():
        return Path(name)
    with contextlib.suppress(ValueError):  # a path, and no name that the hub could have
        config = try_to_load_from_cache(name, "config.json", revision=revision)
        return Path(config).parent if isinstance(config, str) else Path(name)
    return Path(name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent}: there is neither config.json nor adapter_config.json.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not whole: {error}. Save the model again.") from error


def shapes_of(path: Path) -> dict[str, list[int]]:
    """Shapes by name from a safetensors file's header; its length is checked, nothing else of it is read.

    Raises:
        CheckpointError: The file is missing or cut off, or no safetensors file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there are no such weights. Copy or save them again.")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  # it is no dict
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not whole ({error}). Copy or save it again.") from error


def inspect_files(saved: SavedModel) -> list[Finding]:
    """What the files say of each layer that concerns the model; what cannot be read ends the list."""
    layers: tuple[tuple[str, Callable[[SavedModel], tuple[bool | None, str]]], ...] = (
        ("weights", _weights), ("labels", _labels), ("head", _head), ("tokenizer", _tokenizer), ("padding", _padding),
        ("configuration", _configuration), (BASE_TOKENIZER, _base_tokenizer),
    )  # fmt: skip
    findings = []
    for layer, look in layers:
        try:
            holds, message = look(saved)
        except (CheckpointError, OSError, ValueError) as error:
            findings.append(Finding(layer, False, str(error)))
            break
        if message:
            findings.append(Finding(layer, holds, message))
    return findings


def _weights(saved: SavedModel) -> tuple[bool, str]:
    names = list(saved.shapes)
    architectures = saved.config.get("architectures") or []
    if any("ForCausalLM" in each for each in architectures) and saved.head is None:
        raise CheckpointError(f"this is a language model ({architectures[0]}) and no reward model: train one from it.")
    if any(name.split(".")[-2:-1] == ["lm_head"] for name in names):
        return False, "they hold an `lm_head`: this is a language model, or was saved as one. Train a reward model."
    if saved.adapter is None and not any("ForSequenceClassification" in each for each in architectures):
        return False, f"config.json says architectures={architectures}, expected one <X>ForSequenceClassification."
    return True, f"{len(names):,} tensors, whole"


def _labels(saved: SavedModel) -> tuple[bool, str]:
    if saved.adapter is not None:
        task = saved.adapter.get("task_type")
        ok = task == "SEQ_CLS"
        message = f"the adapter's task type is {task}, expected SEQ_CLS: it belongs to another kind of model."
        return ok, "the adapter's task type is SEQ_CLS" if ok else message
    labels = saved.config.get("id2label", {"0": "", "1": ""})  # transformers' own default is two
    if len(labels) != 1:
        return False, f"config.json gives the head {len(labels)} labels: a plain load fails or adds a random head."
    return True, "one"


def _head(saved: SavedModel) -> tuple[bool, str]:
    if saved.head is None and saved.base is not None and saved.base.head is not None:
        return _head(saved.base)  # trained before, and not by this adapter
    if saved.head is None:
        what = "the adapter was saved without its head" if saved.adapter else "no weight is called as a head is"
        return False, f"{what} ({' or '.join(KNOWN_HEADS)}): a plain load draws a random one. Copy or save it again."
    shape = saved.shapes[saved.head]
    if shape[0] != 1:
        return False, f"{saved.head} is {shape}, expected [1, {shape[1]}]: one reward for each sequence."
    return True, f"{saved.head} {shape}"


def _tokenizer(saved: SavedModel) -> tuple[bool, str]:
    said, tokenizer = saved.description.get("rendering") or {}, saved.tokenizer
    template = "no chat template" if not tokenizer.chat_template else "with its chat template"
    if said and said.get("chat_template") != template_hash(tokenizer):
        return False, "its chat template is not the one of training (reward.json has its hash). Put that back."
    changed = [
        f"{name} was {said[name]!r} and is {getattr(tokenizer, f'{name}_token')!r}"
        for name in ("bos", "eos", "pad")
        if said.get(name) is not None and said[name] != getattr(tokenizer, f"{name}_token")
    ]
    if changed:
        return False, f"{'; '.join(changed)}. Put the tokenizer of training back."
    return True, f"{len(tokenizer):,} tokens, {template}"


def _padding(saved: SavedModel) -> tuple[bool, str]:
    tokenizer = saved.tokenizer
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    if pad is None:
        return False, "the tokenizer has no pad token: engines take EOS, and read the token before the last."
    if pad == eos:
        return False, f"pad is EOS ({tokenizer.pad_token!r}): plain transformers reads the token before the last."
    said = (saved.config.get("text_config") or saved.config).get("pad_token_id", saved.config.get("pad_token_id"))
    if saved.adapter is None and said != pad:
        return False, f"config.json says pad_token_id={said}, the tokenizer {pad}: padding would be read as text."
    return True, f"{tokenizer.pad_token!r} (id {pad}), which is not EOS"


def _configuration(saved: SavedModel) -> tuple[bool, str]:
    if saved.adapter is not None:
        return True, ""
    lacking = []
    if saved.config.get("problem_type") != "regression":
        lacking.append('problem_type="regression" (without it vLLM answers sigmoids)')
    if not {"value_head_prefix", "mean", "std"} <= saved.config.keys():
        lacking.append("value_head_prefix, mean and std (which OpenRLHF reads)")
    if lacking:
        return False, f"config.json lacks {' and '.join(lacking)}. Add it."
    return True, "what vLLM and OpenRLHF read is there"


def _base_tokenizer(saved: SavedModel) -> tuple[bool | None, str]:
    """TRL's GRPO and RLOO load the tokenizer of an adapter's BASE: another template or pad there, another score."""
    if saved.adapter is None:
        return True, ""
    base = saved.adapter.get("base_model_name_or_path")
    if not base:
        return None, "adapter_config.json names no base model, so nobody can load it: give the base a path."
    try:
        theirs = load_tokenizer(
            base,
            model_init_kwargs={"revision": saved.adapter.get("revision")},
            trust_remote_code=saved.trust_remote_code,
        )
    except ModelError as error:
        return None, str(error)
    own = saved.tokenizer
    differs = [
        name
        for name, one, other in (
            ("chat template", template_hash(own), template_hash(theirs)),
            ("pad token", own.pad_token, theirs.pad_token or theirs.eos_token),
            ("EOS token", own.eos_token, theirs.eos_token),
        )
        if one != other
    ]
    if differs:
        return False, (
            f"{base} has another {' and another '.join(differs)} than the adapter. Engines that load the base's "
            f"tokenizer (TRL's GRPO and RLOO, given this folder) would score otherwise: merge it first (`plaudit "
            f"merge`), or pass the adapter's as `reward_processing_classes`."
        )
    return True, "like the adapter's"
