"""Whether a model can run forests: what it says of itself, and how to try it on real sequences."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from plaudit.errors import ModelError
from plaudit.forest import attention
from plaudit.models.adapters import base_model
from plaudit.models.precision import share_of_rounding
from plaudit.models.reward_head import reads_last_position
from plaudit.models.steady import is_quantized_layer

__all__ = ["Unclear", "compare_layouts", "has_virtual_tokens", "in_float32", "routes_experts", "why_padded"]


def why_padded(model: "PreTrainedModel | PeftModel") -> str | None:
    """What the model's kind says against the forest; `None` if nothing does."""
    base = base_model(model)
    if not reads_last_position(base):
        return f"{type(base).__name__} is an encoder: every token sees every other"
    if has_virtual_tokens(model):
        return "prefix and prompt tuning put virtual tokens before every sequence"
    return attention.unsupported_reason(base)


def has_virtual_tokens(model: "PreTrainedModel | PeftModel") -> bool:
    """Whether an adapter puts tokens of its own before every sequence: prefix and prompt tuning."""
    return isinstance(model, PeftModel) and any(config.is_prompt_learning for config in model.peft_config.values())


def routes_experts(model: PreTrainedModel) -> bool:
    """Whether tokens are routed to experts: there, rounding may flip a choice, and rewards differ by more."""
    config = model.config.get_text_config()
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return any((getattr(config, name, None) or 0) > 1 for name in names)


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """The model's weights in float32 for a while, and what 4-bit layers compute in; then the same as before."""
    layers = [module for module in model.modules() if is_quantized_layer(module)]
    packed = {id(layer.weight) for layer in layers}  # stored in any type: its numbers are not that type's
    narrow = {
        p: p.data for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16) and id(p) not in packed
    }
    computed = {layer: layer.compute_dtype for layer in layers if hasattr(layer, "compute_dtype")}
    try:
        for parameter in narrow:
            parameter.data = parameter.data.float()
        for layer in computed:
            layer.compute_dtype = torch.float32  # type: ignore[assignment]
        yield
    finally:
        for parameter, data in narrow.items():
            parameter.data = data
        for layer, dtype in computed.items():
            layer.compute_dtype = dtype


class Unclear(Exception):  # noqa: N818  # an outcome, caught where it is raised
    """The rewards lie so close together that their precision explains any difference between layouts."""


def compare_layouts(
    score: Callable[[str], torch.Tensor], precision: torch.dtype, *, sure: str = "padded", tried: str = "forest"
) -> str | None:
    """What speaks against a layout after scoring the same sequences in it and in another; `None` if nothing does.

    Args:
        score: Gives the rewards [N] of some sequences in the layout named.
        precision: What the model computes in.
        sure: The layout whose rewards are right.
        tried: The one in question.

    Raises:
        Unclear: They are as close as the precision tells; but only where that is no better than guessing.
    """
    right = score(sure).double()
    try:
        rewards = score(tried).double()
    except ModelError as error:
        return str(error)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model with code of its own may trip over what it does not know
        what = {"forest": "on a forest", "padded": "on a padded batch"}.get(tried, "otherwise")
        return f"the model fails {what} ({type(error).__name__}: {error})"
    difference, size = (rewards - right).abs().max().item(), right.square().mean().sqrt().item()
    share = share_of_rounding(precision)
    if difference <= share * size:
        # Rewards of a trained model may lie close together and far from zero: a wrong mask would hide in the rounding.
        if precision != torch.float32 and share * size > right.std(correction=0).item() / 2 > 0:
            raise Unclear
        return None
    return (
        f"on {len(right)} sequences the rewards of the two layouts differ by up to "
        f"{difference:.3g}, more than {str(precision).removeprefix('torch.')} explains ({share:.1g} of their size, "
        f"{size:.3g})"
    )
