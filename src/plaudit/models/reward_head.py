"""The reward head, and the one forward that reads it.

A reward model is a backbone and a linear head with one output, which are found by structure and not by a list of
architectures. The head computes in float32 outside autocast. On a decoder the reward is read at the last position of a
sequence, according to the attention mask; the forward of transformers searches for a pad token instead.
"""

import inspect
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from plaudit.errors import ModelError
from plaudit.models.last_layer import last_feed_forward_at
from plaudit.models.precision import settle_vector_kernels, use_training_kernels_on_cpu

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "KNOWN_HEADS",
    "RewardHead",
    "attach_uncertainty",
    "bind_reward_forward",
    "check_one_label",
    "has_reward_forward",
    "head_names",
    "num_columns",
    "outside_backbone",
    "reads_last_position",
    "reset_head",
    "trained_head",
]

KNOWN_HEADS = ("score", "classifier")  # the head's names in transformers, which PEFT saves for SEQ_CLS


class RewardHead(nn.Linear):
    """A linear layer whose weights and products are in float32, whatever the dtype of the backbone or of autocast.

    Attributes:
        uncertainty: A module that puts E further columns beside each reward, such as the rewards of the members of an
            ensemble: it maps features [..., hidden] and rewards [..., 1] to [..., 1 + E], the reward first. The module
            is a child of the model and not of the head, so that neither a checkpoint nor PEFT's copy of the head holds
            it. `None` for a model that gives the reward alone.
    """

    uncertainty: nn.Module | None = None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features [..., hidden] of any precision to float32 rewards [..., 1], with `uncertainty` [..., 1 + E]."""
        with torch.autocast(features.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            rewards = nn.functional.linear(features.float(), self.weight.float(), bias)
            return rewards if self.uncertainty is None else self.uncertainty(features.float(), rewards)

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> "RewardHead":
        """Make a head from the parameters of a linear layer, in float32."""
        head = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        for name, parameter in linear.named_parameters():
            # DeepSpeed sets the dtype of a shard that it makes while loading (ZeRO-3).
            if parameter.dtype != torch.float32 and not hasattr(parameter, "ds_id"):
                parameter = nn.Parameter(parameter.data.float(), requires_grad=parameter.requires_grad)
            setattr(head, name, parameter)
        return head.train(linear.training)


def check_one_label(model: "PreTrainedModel") -> None:
    """Raise unless a model is a sequence classifier with exactly one label.

    Raises:
        ModelError: The model has a head of another size, or none.
    """
    labels = getattr(model.config, "num_labels", None)
    if labels != 1 or not head_names(model):
        raise ModelError(
            f"{type(model).__name__} has `num_labels={labels}` or no head, but reward models require `num_labels=1` to "
            f"output a single scalar reward per sequence. Load it with "
            f"`AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)`, or pass its name or path as a "
            f"string to have it configured automatically."
        )


def head_names(model: "PreTrainedModel") -> list[str]:
    """Return the qualified names of the linear layers with one output outside the backbone.

    A model has one, except under PEFT, which keeps the original beside the trained copy.
    """
    backbone = f"{model.base_model_prefix}."
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == 1 and not name.startswith(backbone)
    ]


def trained_head(model: "PreTrainedModel") -> nn.Linear:
    """Return the head that gives the rewards of a model: under PEFT its trained copy, which comes after the original.

    Args:
        model: A sequence classifier with one label, not wrapped in PEFT (pass its base model then).
    """
    head = model.get_submodule(head_names(model)[-1])
    assert isinstance(head, nn.Linear)
    return head


def outside_backbone(model: "PreTrainedModel") -> list[str]:
    """Return the names of a model's children that hold weights, other than the backbone.

    These are the head and, on an encoder, a pooler or a dense layer before it, which a base model lacks as well.
    """
    return [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and next(child.parameters(), None) is not None
    ]


def reset_head(model: "PreTrainedModel", seed: int) -> None:
    """Initialise the head anew, as for a base model without one.

    Args:
        model: A sequence classifier with one label, not wrapped in PEFT (pass its base model then). Changed in place.
        seed: The seed of the weights; the random state of the process is neither used nor changed.
    """
    std = getattr(model.config.get_text_config(), "initializer_range", 0.02)
    for name in head_names(model):
        head = model.get_submodule(name)
        drawn = torch.empty(head.weight.shape).normal_(0, std, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            head.weight.copy_(drawn)
            if head.bias is not None:
                head.bias.zero_()


def reads_last_position(model: "PreTrainedModel") -> bool:
    """Return whether the reward of a model is read at the last position: on decoders, whose head is called `score`."""
    if getattr(model.config, "is_encoder_decoder", False):  # T5Gemma has a `score` too
        return False
    return all(name.split(".")[0] == "score" for name in head_names(model))


def attach_uncertainty(model: "PreTrainedModel", uncertainty: nn.Module | None) -> None:
    """Give the heads of a model a module for their `uncertainty`, or take it away.

    Args:
        model: A model with `RewardHead`s, not wrapped in PEFT (pass its base model then). Changed in place.
        uncertainty: The module, which becomes the child `uncertainty` of the model, with the number C of
            columns, the reward among them, as `num_columns`; `None` for the reward alone.
    """
    model.uncertainty = uncertainty
    for name in head_names(model):
        model.get_submodule(name).__dict__["uncertainty"] = uncertainty  # past nn.Module, which would register a child
    others = {key for key in model._keys_to_ignore_on_save or () if not key.startswith("uncertainty.")}
    own = {f"uncertainty.{name}" for name in ({} if uncertainty is None else uncertainty.state_dict())}
    model._keys_to_ignore_on_save = others | own


def num_columns(model: "PreTrainedModel") -> int:
    """Return the number C of columns that a model gives for each sequence: 1 where it gives the reward alone."""
    return getattr(getattr(model, "uncertainty", None), "num_columns", 1)


def bind_reward_forward(model: "PreTrainedModel", *, keep_forward: bool = False) -> None:
    """Give a model instance the float32 head and, if it is a decoder, the one reward forward.

    An encoder keeps its own forward, which pools in its own way, with the float32 head at the end. The names of the
    parameters do not change, so neither does a saved checkpoint.

    Args:
        model: A sequence classifier with one label, not wrapped in PEFT (pass its base model then). Changed in place.
        keep_forward: Leave a decoder its own forward as well.

    Raises:
        ModelError: The model has no head with one output, or weights that were repacked for inference.
    """
    check_one_label(model)
    settle_vector_kernels()
    use_training_kernels_on_cpu(model)
    for name in head_names(model):
        module = model.get_submodule(name)
        if not isinstance(module, RewardHead):
            model.set_submodule(name, RewardHead.from_linear(module))
    if reads_last_position(model) and not keep_forward and not has_reward_forward(model):
        backbone = inspect.signature(type(model.base_model).forward).parameters
        model.takes_position_ids = "position_ids" in backbone  # Bloom derives positions from the mask
        model.forest_is_proven = False  # whether every layer was seen to call the attention of the forest
        model.reward_forward_is_bound = True
        model.forward = _BoundForward(model)


def has_reward_forward(model: "PreTrainedModel") -> bool:
    """Return whether a model runs the one reward forward, and not that of its class."""
    return getattr(model, "reward_forward_is_bound", False)


def _reward_forward(
    self: "PreTrainedModel",
    input_ids: torch.Tensor | None = None,  # [N, L]
    attention_mask: torch.Tensor | None = None,  # [N, L], or [N, P + L] behind P positions of a prefix
    inputs_embeds: torch.Tensor | None = None,  # [N, L, H]
    leaf: torch.Tensor | None = None,  # [N]: then the inputs are a forest, [1, T]
    **kwargs: Any,
) -> SequenceClassifierOutputWithPast:
    """Return the rewards of N sequences, padded on either side or in one forest, as `logits` [N, 1] in float32."""
    if leaf is not None and input_ids is not None:
        return _forest_forward(self, input_ids, leaf, **kwargs)
    given = input_ids if inputs_embeds is None else inputs_embeds
    if given is None:
        raise ValueError("expected `input_ids` or `inputs_embeds`")
    rows, length = given.shape[:2]
    if attention_mask is None:
        pad = self.config.get_text_config().pad_token_id
        if input_ids is not None and rows > 1 and (input_ids[:, -1] == pad).any():
            raise ValueError(
                "expected an `attention_mask`: a row ends in the pad token, which may be padding or a token"
            )
        attention_mask = torch.ones(rows, length, dtype=torch.long, device=given.device)
    options = {name: value for name, value in kwargs.items() if value is not None} | {"use_cache": False}
    if self.takes_position_ids:
        # A position counts the real tokens before it, so left padding does not move a sequence.
        positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        options.setdefault("position_ids", positions)
    name = "input_ids" if inputs_embeds is None else "inputs_embeds"
    outputs = self.base_model(**{name: given}, attention_mask=attention_mask, **options)
    hidden = outputs[0]  # [N, L, H]
    places = torch.arange(length, device=hidden.device)
    leaf = (places * attention_mask[:, -length:].to(places.dtype)).argmax(-1)  # [N], the last real token
    rewards = self.score(hidden[torch.arange(rows, device=hidden.device), leaf])  # [N, 1]
    return SequenceClassifierOutputWithPast(logits=rewards)


def _forest_forward(
    self: "PreTrainedModel",
    input_ids: torch.Tensor,  # [1, T]
    leaf: torch.Tensor,  # [N]
    position_ids: torch.Tensor,  # [1, T]
    subtree_end: torch.Tensor,  # [1, T]
    **kwargs: Any,
) -> SequenceClassifierOutputWithPast:
    """Return the rewards of the N sequences of a forest (see `plaudit.forest.trie`) as `logits` [N, 1] in float32."""
    # Imported late, since they import the code of transformers' models.
    from plaudit.forest.attention import ForestAttention, check_every_layer, enabled_backend
    from plaudit.forest.filling import fill_for_kernels

    if enabled_backend(self) is None:
        raise ModelError("a batch is a token forest, but `plaudit.forest.attention.enable` was not called.")
    kind = input_ids.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype
    input_ids, position_ids, subtree_end = fill_for_kernels(input_ids, position_ids, subtree_end, dtype)
    forest = ForestAttention(position_ids[0], subtree_end[0], notes_windows=not self.forest_is_proven)
    options = {name: value for name, value in kwargs.items() if value is not None}
    options |= {"attention_mask": forest.placeholder_mask, "use_cache": False}
    # Gradients need what each layer computes at every token, or would come out wrong for one that is read twice.
    is_narrow = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    with last_feed_forward_at(self, leaf) if is_narrow else nullcontext():
        outputs = self.base_model(input_ids=input_ids, position_ids=position_ids, forest=forest, **options)
    if not self.forest_is_proven:
        check_every_layer(self, forest)
        self.forest_is_proven = True
    return SequenceClassifierOutputWithPast(logits=self.score(outputs[0][0, leaf]))  # [N, 1]


class _BoundForward:
    """`_reward_forward` bound to one model; a bound method could not be pickled, since its class has no such method."""

    __func__ = staticmethod(_reward_forward)  # accelerate wraps `__func__` of a bound method in autocast

    def __init__(self, model: "PreTrainedModel") -> None:
        self.__self__ = model

    @property
    def __signature__(self) -> inspect.Signature:
        # PEFT bypasses a forward without `past_key_values` in its signature (prefix tuning).
        _, *names = inspect.signature(type(self.__self__).forward).parameters.values()
        return inspect.Signature(names)

    def __call__(self, *args: Any, **kwargs: Any) -> SequenceClassifierOutputWithPast:
        return self.__func__(self.__self__, *args, **kwargs)
