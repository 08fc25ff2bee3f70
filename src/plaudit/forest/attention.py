"""Forest attention, registered with transformers' own attention and mask interfaces; no model class is patched.

`enable` sets our function as the attention of a model. Models pass the keyword `forest` down to every layer: a layer
that is given one computes the forest's attention, and a layer that is not computes what the model had before. So both
layouts run through one model. Backends:

- `blocks`: small subtrees whole, long chains in parts (`plaudit.forest.blocks`), on any device.
- `fused`: PyTorch's flash attention for CPUs, part by part (`plaudit.forest.fused`). The name avoids "flash", which
  transformers looks for in this setting.
- `flex`: FlexAttention with the forest's mask, on CUDA (`plaudit.forest.flex`).
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
from plaudit.forest.fused import attend_fused, can_attend_fused, is_faster_than_blocks
from plaudit.forest.partition import Block, KernelCall, partition_forest, partition_kernel_calls

__all__ = ["BACKENDS", "ForestAttention", "check_every_layer", "enable", "enabled_backend", "unsupported_reason"]

BACKENDS = ("blocks", "dense", "flex", "fused")
_PREFIX = "plaudit"


class ForestAttention:
    """One forest, shared by the attention layers of one forward pass.

    This is no dataclass: FSDP2 casts dataclasses for bf16, and would hand each layer a copy, which shares nothing.

    Attributes:
        position_ids: Depth of each token, shape [T].
        subtree_end: One past the last descendant of each token, shape [T].
        windows: Sliding window of each layer that has called, by layer, for `check_every_layer`; `None` where it is not
            noted. A compiler would compile each layer anew for a dict that grows.
        placeholder_mask: A mask [1, 1, 1, 1] to give a model instead of its attention mask. transformers passes masks
            of four dimensions on to the layers as they are, and our layers read the forest instead.
    """

    def __init__(self, position_ids: torch.Tensor, subtree_end: torch.Tensor, *, notes_windows: bool = True) -> None:
        self.position_ids, self.subtree_end = position_ids, subtree_end
        self.windows: dict[Any, int | None] | None = {} if notes_windows else None
        self.placeholder_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=position_ids.device)
        self._cache: dict[Any, Any] = {}  # a cached method would keep the forest alive

    def blocks(self, heads: int, window: int | None) -> list[Block]:
        """Return the forest's partition for the backend `blocks`."""
        return self._cached(self._blocks, heads, window)

    def kernel_calls(self) -> list[KernelCall]:
        """Return the forest's partition for the backend `fused`."""
        return self._cached(self._kernel_calls)

    def mask(self, window: int | None) -> torch.Tensor:
        """Return the mask of the forest, shape [1, 1, T, T]."""
        return self._cached(self._mask, window)

    def block_mask(self, window: int | None) -> BlockMask:
        """Return the mask of the forest for FlexAttention."""
        return self._cached(self._block_mask, window)

    def sees(self, query: torch.Tensor, key: torch.Tensor, window: int | None) -> torch.Tensor:
        """Return whether token `query` attends to token `key`, for indices that broadcast."""
        seen = (key <= query) & (query < self.subtree_end[key])
        if window is not None:
            seen = seen & (self.position_ids[query] - self.position_ids[key] < window)  # FlexAttention: not in place
        return seen

    def _cached(self, make: Callable[..., Any], *arguments: Any) -> Any:
        key = make.__name__, *arguments
        if key not in self._cache:
            self._cache[key] = make(*arguments)
        return self._cache[key]

    def _blocks(self, heads: int, window: int | None) -> list[Block]:
        position_ids, subtree_end = self.position_ids.cpu().numpy(), self.subtree_end.cpu().numpy()
        return partition_forest(position_ids, subtree_end, heads, window, self.position_ids.device)

    def _kernel_calls(self) -> list[KernelCall]:
        return partition_kernel_calls(self.position_ids.numpy(), self.subtree_end.numpy())

    def _mask(self, window: int | None) -> torch.Tensor:
        tokens = torch.arange(len(self.position_ids), device=self.position_ids.device)
        return self.sees(tokens[:, None], tokens[None, :], window)[None, None]

    def _block_mask(self, window: int | None) -> BlockMask:
        return block_mask(
            self.position_ids, self.subtree_end, window,
            lambda batch, head, query, key: self.sees(query, key, window),  # noqa: ARG005  # FlexAttention's signature
        )  # fmt: skip


def unsupported_reason(model: PreTrainedModel) -> str | None:
    """Return the reason why this model cannot run a forest; `None` if its configuration and signature allow it."""
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
    if "flash" in current:  # transformers branches on such a name in other places too
        return f"{name} was loaded with attn_implementation={current!r}; load it with 'sdpa' to run a forest"
    if getattr(config, "is_encoder_decoder", False):
        return f"{name} is an encoder and a decoder"
    taken = inspect.signature(type(model.base_model).forward).parameters
    if "position_ids" not in taken or not any(each.kind is each.VAR_KEYWORD for each in taken.values()):
        return f"{name} does not take positions, or does not pass keywords on to its attention"
    return None


def enable(model: PreTrainedModel, backend: str | None = None) -> None:
    """Let a model run forests. Batches without a forest run as before.

    Args:
        model: A sequence classifier, without PEFT and other wrappers.
        backend: One of `BACKENDS`; `None` chooses by the device of each forest.

    Raises:
        ConfigError: The backend is unknown.
        ModelError: `unsupported_reason` gives a reason.
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
    """Return the backend that `enable` set, "auto" if it depends on the device, `None` if `enable` was not called."""
    name = model.config.get_text_config()._attn_implementation or ""
    return name.split(":")[1] if name.startswith(f"{_PREFIX}:") else None


def check_every_layer(model: PreTrainedModel, forest: ForestAttention) -> None:
    """Raise unless every attention layer has called our function with this forest and its own sliding window.

    Some models accept the setting, never call the function and score wrongly; only a forward pass shows it.

    Args:
        model: A sequence classifier that has run this forest.
        forest: The forest.

    Raises:
        ModelError: A layer did not call the function, or not with its window.
    """
    config, name = model.config.get_text_config(), type(model).__name__
    windows = forest.windows or {}
    if len(windows) != config.num_hidden_layers:
        raise ModelError(
            f"no token forest: {len(windows)} of the {config.num_hidden_layers} attention layers of {name} "
            "called the forest's attention."
        )
    kinds = getattr(config, "layer_types", None)
    for layer, window in windows.items():
        index = getattr(layer, "layer_idx", None)
        if kinds is not None and index is not None:
            sliding = kinds[index] == "sliding_attention"
        else:
            sliding = bool(getattr(config, "sliding_window", None))
        if sliding and window is None:
            raise ModelError(f"no token forest: layer {index} of {name} does not pass its sliding window on.")


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
    """Compute attention as transformers calls it; return [1, T, H, D] and no weights."""
    if forest is None:
        return _original_attention(module, original)(module, query, key, value, attention_mask, *args, **options)
    attend = _attend if query.device.type == "cuda" else _attend_uncompiled
    return attend(
        module, query, key, value, attention_mask, *args, backend=backend, original=original, forest=forest, **options
    )


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *args: Any,
    backend: str | None,
    original: str,
    forest: ForestAttention,
    **options: Any,
) -> tuple[torch.Tensor, Any]:
    _check_call(module, query, attention_mask, forest, options)
    window = options.get("sliding_window")
    if forest.windows is not None:
        forest.windows[module] = window
    dtype, rules, sinks = _compute_dtype(value), _rules(module, query, options), options.get("s_aux")
    backend = backend or _backend_for(query, value, rules, sinks, dtype)
    if backend in ("blocks", "fused"):
        return _by_parts(backend, query, key, value, forest, rules, sinks, dtype), None
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if backend == "flex":
        return attend_flex(query, key, value, forest.block_mask(window), rules, sinks), None
    mask = forest.mask(window)
    if original == "eager":  # eager attention adds the mask to the scores
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    return _original_attention(module, original)(module, query, key, value, mask, *args, **options)


# Elsewhere than on CUDA, attention is mostly a loop over parts, which differs from forest to forest. The rest of the
# model compiles around it.
_attend_uncompiled = torch.compiler.disable(_attend)


def _backend_for(
    query: torch.Tensor, value: torch.Tensor, rules: ScoreRules, sinks: torch.Tensor | None, dtype: torch.dtype
) -> str:
    has_kernel = min(query.shape[-1], value.shape[-1]) >= MIN_HEAD_DIM and not rules.dropout
    if query.device.type == "cuda" and has_kernel:
        return "flex"
    can_fused = can_attend_fused(query, value, rules, sinks) and is_faster_than_blocks(query, value, dtype)
    return "fused" if can_fused else "blocks"


@torch.compiler.disable  # on CUDA as well, where `_attend` is compiled
def _by_parts(
    backend: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    forest: ForestAttention,
    rules: ScoreRules,
    sinks: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    tensors = query[0], key[0], value[0]
    if backend == "blocks":
        return attend_blocks(*tensors, forest.blocks(query.shape[1], rules.window), rules, sinks, dtype)[None]
    if not can_attend_fused(query, value, rules, sinks):
        raise ModelError(
            "no token forest: the backend 'fused' runs on the CPU, for queries and values of one size, without window, "
            "sinks, soft-capping and dropout."
        )
    return attend_fused(*tensors, forest.kernel_calls(), rules.scaling, dtype)[None]


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


def _compute_dtype(value: torch.Tensor) -> torch.dtype:
    """Return the precision of autocast, as the stock functions compute in; without autocast that of the values."""
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
        raise ModelError(f"no token forest: {name} makes its own attention mask.")
    if options.get("position_bias") is not None:
        raise ModelError(f"no token forest: {name} adds a bias for each pair of positions to its scores.")
    if getattr(module, "is_causal", True) is False:
        raise ModelError(f"no token forest: {name} attends in both directions.")
    if query.shape[0] != 1 or query.shape[2] != len(forest.position_ids):
        raise ModelError(
            f"no token forest: {name} has queries of shape {tuple(query.shape)} for {len(forest.position_ids)} tokens."
        )


def _original_attention(module: torch.nn.Module, original: str) -> Callable[..., Any]:
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(original, eager)
