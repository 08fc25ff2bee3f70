"""Forest attention, registered with transformers' own attention and mask interfaces; no model class is touched.

`enable` names our function as the model's attention. With a forest at hand (the keyword `forest`, which models pass
down to every layer) it computes the forest's attention; without, it is what the model had before, so both layouts run
through one model. Backends:

- `blocks`: small subtrees whole, long chains in pieces (`plaudit.forest.blocks`), on any device.
- `flex`: FlexAttention with the one-line mask, for CUDA (`plaudit.forest.flex`).
- `dense`: the model's own attention under a T x T mask; the reference.
"""

import inspect
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from plaudit.errors import ConfigError, ModelError
from plaudit.forest.blocks import ScoreRules, attend_blocks
from plaudit.forest.flex import MIN_HEAD_DIM, attend_flex, block_mask
from plaudit.forest.partition import Block, partition_forest

__all__ = ["BACKENDS", "ForestAttention", "check_every_layer", "enable", "enabled_backend", "unsupported_reason"]

BACKENDS = ("blocks", "dense", "flex")
_PREFIX = "plaudit"


class ForestAttention:
    """One forest, as the attention layers of one forward pass share it.

    (No dataclass: in bf16 FSDP2 would hand each layer a copy of its own, which shares nothing.)

    Attributes:
        position_ids: Depth of each token, shape [T].
        subtree_end: One past the last token of its subtree, shape [T].
        windows: The window of every layer that has called, by layer; it proves that all layers did.
        placeholder_mask: To give a model as its attention mask.
    """

    def __init__(self, position_ids: torch.Tensor, subtree_end: torch.Tensor) -> None:
        self.position_ids, self.subtree_end = position_ids, subtree_end
        self.windows: dict[Any, int | None] = {}
        # Given as the mask: a mask of four dimensions reaches the layers as it is, and ours know theirs anyway.
        self.placeholder_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=position_ids.device)
        self._cache: dict[Any, Any] = {}  # what layers have asked for; a cached method would hold the forest itself

    def blocks(self, heads: int, window: int | None) -> list[Block]:
        """The blocks that attention runs in."""
        return self._cached(self._blocks, heads, window)

    def mask(self, window: int | None) -> torch.Tensor:
        """The whole mask [1, 1, T, T]."""
        return self._cached(self._mask, window)

    def block_mask(self, window: int | None) -> BlockMask:
        """The mask as FlexAttention takes it."""
        return self._cached(self._block_mask, window)

    def _cached(self, make: Callable[..., Any], *key: Any) -> Any:
        place = make.__name__, *key
        if place not in self._cache:
            self._cache[place] = make(*key)
        return self._cache[place]

    def _blocks(self, heads: int, window: int | None) -> list[Block]:
        position_ids, subtree_end = self.position_ids.cpu().numpy(), self.subtree_end.cpu().numpy()
        return partition_forest(position_ids, subtree_end, heads, window, self.position_ids.device)

    def sees(self, query: torch.Tensor, key: torch.Tensor, window: int | None) -> torch.Tensor:
        """Whether token `query` attends to token `key` (indices that broadcast): the whole mask of a forest."""
        seen = (key <= query) & (query < self.subtree_end[key])
        if window is not None:
            seen = seen & (self.position_ids[query] - self.position_ids[key] < window)  # FlexAttention: not in place
        return seen

    def _mask(self, window: int | None) -> torch.Tensor:
        places = torch.arange(len(self.position_ids), device=self.position_ids.device)
        return self.sees(places[:, None], places[None, :], window)[None, None]

    def _block_mask(self, window: int | None) -> BlockMask:
        return block_mask(
            self.position_ids, self.subtree_end, window,
            lambda batch, head, query, key: self.sees(query, key, window),  # noqa: ARG005  # FlexAttention's signature
        )  # fmt: skip


def unsupported_reason(model: PreTrainedModel) -> str | None:
    """Why this model cannot run a forest, as far as its configuration tells; `None` if nothing speaks against it."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    name = type(model).__name__
    if not (getattr(model, "_supports_attention_backend", False) and model._can_set_attn_implementation()):
        return f"{name} does not take its attention from transformers' attention interface"
    if kinds:
        return f"{name} has layers of the kind {', '.join(sorted(kinds))}, which cannot share a prefix this way"
    if getattr(config, "is_causal", True) is False or getattr(config, "use_bidirectional_attention", None):
        return f"{name} attends in both directions"
    current = config._attn_implementation or ""
    if "flash" in current:  # transformers reads more out of such a name
        return f"{name} was loaded with attn_implementation={current!r}, and 'sdpa' is what goes with a forest"
    if getattr(config, "is_encoder_decoder", False):
        return f"{name} is an encoder and a decoder"
    taken = inspect.signature(type(model.base_model).forward).parameters
    if "position_ids" not in taken or not any(each.kind is each.VAR_KEYWORD for each in taken.values()):
        return f"{name} does not take positions, or no keywords for its attention"
    return None


def enable(model: PreTrainedModel, backend: str | None = None) -> None:
    """Let a model run forests; without a forest it goes on as before.

    Args:
        model: The sequence classifier, its PEFT and other wrappers taken off.
        backend: One of `BACKENDS`; by the device of each forest if `None`.

    Raises:
        ConfigError: There is no such backend.
        ModelError: `unsupported_reason` knows a reason.
    """
    if backend is not None and backend not in BACKENDS:
        raise ConfigError(f"attention backend: expected one of {', '.join(BACKENDS)}, got {backend!r}.")
    reason = unsupported_reason(model)
    if reason is not None:
        raise ModelError(f"no token forest: {reason}.")
    current = model.config.get_text_config()._attn_implementation
    original = current.split(":", 2)[2] if current.startswith(f"{_PREFIX}:") else current
    name = f"{_PREFIX}:{backend or 'auto'}:{original}"
    AttentionInterface.register(name, partial(_attention, backend=backend, original=original))
    if original in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[original])
    model.set_attn_implementation(name)


def enabled_backend(model: PreTrainedModel) -> str | None:
    """The backend that `enable` set, "auto" if by device, `None` if it was not called."""
    name = model.config.get_text_config()._attn_implementation or ""
    return name.split(":")[1] if name.startswith(f"{_PREFIX}:") else None


def check_every_layer(model: PreTrainedModel, forest: ForestAttention) -> None:
    """Raise unless every attention layer has called our function with this forest, and with the window it should.

    Some models accept the setting, never call it and score wrongly; only a forward pass can tell.

    Raises:
        ModelError: A layer did not.
    """
    config, name = model.config.get_text_config(), type(model).__name__
    if len(forest.windows) != config.num_hidden_layers:
        raise ModelError(
            f"no token forest: {len(forest.windows)} of the {config.num_hidden_layers} attention layers of {name} "
            f"called it."
        )
    kinds = getattr(config, "layer_types", None)
    for layer, window in forest.windows.items():
        index = getattr(layer, "layer_idx", None)
        if kinds is not None and index is not None:
            sliding = kinds[index] == "sliding_attention"
        else:
            sliding = bool(getattr(config, "sliding_window", None))
        if sliding and window is None:
            raise ModelError(f"no token forest: layer {index} of {name} does not say its sliding window.")


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, H, T, D]
    key: torch.Tensor,  # [1, K, T, D]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *args: Any,
    backend: str | None,
    original: str,
    forest: ForestAttention | None = None,
    **options: Any,
) -> tuple[torch.Tensor, Any]:
    """Attention as transformers calls it; returns [1, T, H, D] and no weights."""
    if forest is None:
        return _original_attention(module, original)(module, query, key, value, attention_mask, *args, **options)
    _check_call(module, query, attention_mask, forest, options)
    window = options.get("sliding_window")
    forest.windows[module] = window
    dtype = _precision(value)
    backend = backend or _backend_for(query, value, _dropout(module, options))
    if backend == "blocks":
        return _blocks(module, query, key, value, forest, options, dtype), None
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if backend == "flex":
        rules = _rules(module, query, options)
        return attend_flex(query, key, value, forest.block_mask(window), rules, options.get("s_aux")), None
    mask = forest.mask(window)
    if original == "eager":  # which adds the mask to the scores
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    return _original_attention(module, original)(module, query, key, value, mask, *args, **options)


def _backend_for(query: torch.Tensor, value: torch.Tensor, dropout: float) -> str:
    wide = min(query.shape[-1], value.shape[-1]) >= MIN_HEAD_DIM
    return "flex" if query.device.type == "cuda" and wide and not dropout else "blocks"


@torch.compiler.disable  # its loop over blocks differs from batch to batch; the rest of the model compiles around it
def _blocks(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    forest: ForestAttention,
    options: dict[str, Any],
    dtype: torch.dtype,
) -> torch.Tensor:
    rules = _rules(module, query, options)
    blocks = forest.blocks(query.shape[1], rules.window)
    return attend_blocks(query[0], key[0], value[0], blocks, rules, options.get("s_aux"), dtype)[None]


def _rules(module: torch.nn.Module, query: torch.Tensor, options: dict[str, Any]) -> ScoreRules:
    scaling = options.get("scaling")
    return ScoreRules(
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=options.get("sliding_window"),
        softcap=options.get("softcap"),
        dropout=_dropout(module, options),
    )


def _dropout(module: torch.nn.Module, options: dict[str, Any]) -> float:
    return options.get("dropout", 0.0) if module.training else 0.0


def _precision(value: torch.Tensor) -> torch.dtype:
    """Under autocast its precision, as for the stock functions; else that of the values."""
    device = value.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype


def _check_call(
    module: torch.nn.Module,
    query: torch.Tensor,
    attention_mask: torch.Tensor | None,
    forest: ForestAttention,
    options: dict[str, Any],
) -> None:
    name = type(module).__name__
    if attention_mask is not None and attention_mask.shape != forest.placeholder_mask.shape:
        raise ModelError(f"no token forest: {name} makes an attention mask of its own.")
    if options.get("position_bias") is not None:
        raise ModelError(f"no token forest: {name} adds a bias for each two positions to its scores.")
    if getattr(module, "is_causal", True) is False:
        raise ModelError(f"no token forest: {name} attends in both directions.")
    if query.shape[0] != 1 or query.shape[2] != len(forest.position_ids):
        raise ModelError(
            f"no token forest: {name} has queries of shape {tuple(query.shape)} for {len(forest.position_ids)} tokens."
        )


def _original_attention(module: torch.nn.Module, original: str) -> Callable[..., Any]:
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(original, eager)
