"""The feed-forward part of a decoder's last layer, computed at the last tokens of sequences alone.

A reward is read at the last token of a sequence. What the feed-forward part of the last layer makes of any other token
is read by nothing: no attention comes after it. In a forest of T tokens and N sequences, N of T tokens are enough.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["last_feed_forward_at"]

_ROWS = 16  # N is rounded up, since kernels are made for shapes (`plaudit.forest.filling`)


@contextmanager
def last_feed_forward_at(model: "PreTrainedModel", tokens: torch.Tensor) -> Iterator[None]:
    """Compute the last layer's feed-forward part at these tokens alone, and zeros at all others, within this context.

    Nothing changes for a model whose last layer has no `mlp` (transformers' name in most decoders), or experts in it,
    whose output may have several parts.

    Args:
        model: A sequence classifier, without PEFT and other wrappers, whose rewards are read at these tokens only, and
            without gradients: a token that occurs twice would be given the gradient of both.
        tokens: Indices of the tokens of a forest [1, T] where rewards are read, shape [N].
    """
    part = _last_feed_forward(model)
    if part is None:
        yield
        return
    inputs: list[torch.Tensor] = []
    index = torch.cat([tokens, tokens[-1:].expand(-len(tokens) % _ROWS)])

    def select(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor] | None:
        if len(arguments) != 1:  # a part of another kind, which stays as it is
            return None
        inputs.append(arguments[0])
        return (arguments[0].index_select(1, index.to(arguments[0].device)),)  # [1, T, H] to [1, N, H]

    def spread(_module: nn.Module, _arguments: object, out: torch.Tensor) -> torch.Tensor | None:
        if not inputs:
            return None
        whole = torch.zeros_like(inputs.pop(), dtype=out.dtype)
        return whole.index_copy_(1, tokens.to(out.device), out[:, : len(tokens)])

    # Next to the module's own forward, so that hooks of others on it are given all T tokens.
    handles = part.register_forward_pre_hook(select), part.register_forward_hook(spread, prepend=True)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _last_feed_forward(model: "PreTrainedModel") -> nn.Module | None:
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return None
    count = getattr(model.config.get_text_config(), "num_hidden_layers", len(layers))  # further ones predict tokens
    part = getattr(layers[count - 1], "mlp", None) if 0 < count <= len(layers) else None
    return None if part is None or hasattr(part, "experts") else part
