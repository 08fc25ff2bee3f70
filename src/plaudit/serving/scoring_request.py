"""A request for rewards and its answer, in the words of no dialect."""

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Conversation", "Item", "ModelInfo", "Pair", "Scored", "ScoringRequest", "ServerInfo", "Text", "TokenIds"]


@dataclass(frozen=True)
class Text:
    """A whole text: prompt and response joined.

    Attributes:
        text: The text.
        special_tokens: "rendered": as `RewardModel.score` does, with the tokenizer's special tokens and one EOS at the
            end. "added": the tokenizer's special tokens and nothing else. "none": the text as it is written; both are
            "rendered" for a model that was trained on texts. "exact": the text as it is written, for every model. In no
            case does a sequence begin with two BOS.
    """

    text: str
    special_tokens: Literal["rendered", "added", "none", "exact"] = "rendered"


@dataclass(frozen=True)
class Conversation:
    """A list of messages, written by the model's chat template.

    Attributes:
        messages: Dicts with `role` and `content`, the last one from the assistant or a tool.
        template_kwargs: Keyword arguments for the chat template (`tools`, say).
    """

    messages: list[dict[str, Any]]
    template_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """A prompt and a response, joined as `RewardModel.score(prompts, completions)` joins them.

    Attributes:
        prompt: A string or messages.
        response: A string or messages.
        template_kwargs: Keyword arguments for the chat template.
        as_conversation: Turn two strings into the messages of a user and an assistant if the model was trained on
            conversations, for dialects that can send nothing but strings.
    """

    prompt: str | list[dict[str, Any]]
    response: str | list[dict[str, Any]]
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    as_conversation: bool = False


@dataclass(frozen=True)
class TokenIds:
    """Token ids that a client has made, scored as they are."""

    ids: list[int]


Item = Text | Conversation | Pair | TokenIds


@dataclass(frozen=True)
class ScoringRequest:
    """The items of a request, and what is to be done with their rewards.

    Attributes:
        items: One or more items.
        names: The field of the body that each item came from, such as "items[3]", for error messages.
        model: Name of the model; any name if one model is served.
        normalize: Subtract the mean and divide by the standard deviation that were saved with the model.
        calibrated: Divide the rewards by the temperature that was saved with the model.
        activation: What the dialect's own option asks to apply to each reward.
        truncation: "error" refuses a sequence of more than `max_length` tokens; "left" and "right" cut that side off;
            `None` is the server's default.
        max_length: The most tokens of a sequence, at most the server's own limit; `None` for that limit.
        prefix_step: Score every prefix whose length is a multiple of this, and the whole sequence; needs one item.
        aggregate: The reward to answer and to sort by, "mean" or a conservative one, as in `RewardModel.score`.
        k: The weight of the standard deviation or variance in a conservative reward.
        members: Give the raw rewards of the members.
        columns: Give the raw columns that the model's uncertainty reads.
    """

    items: list[Item]
    names: list[str]
    model: str | None = None
    normalize: bool = False
    calibrated: bool = False
    activation: Literal["identity", "sigmoid"] = "identity"
    truncation: Literal["error", "left", "right"] | None = None
    max_length: int | None = None
    prefix_step: int | None = None
    aggregate: str = "mean"
    k: float = 1.0
    members: bool = False
    columns: bool = False


@dataclass(frozen=True)
class Scored:
    """The rewards of a request, in the order of its items.

    Attributes:
        model: Name of the model that scored them.
        weight_version: Version of its weights, the same for all rewards of the request.
        rewards: N raw rewards, or the conservative ones that the request asked for; finite. (Sort by these: a sigmoid
            saturates into ties.)
        values: N raw rewards after the normalisation, calibration or activation that the request asked for, if any.
        tokens: Tokens of each sequence as the model saw it.
        truncated: Whether each sequence was truncated.
        distinct_tokens: Tokens that the model ran for this request; a prefix shared with another sequence of the same
            step counts once, for the sequence that brought it.
        queued_seconds: Time from the arrival of the request to the step that ran its first sequence.
        run_seconds: Time from there to its last reward.
        pieces: With `prefix_step`: the text that each prefix adds to the one before it.
        label: The model's name of its one label, which some dialects repeat in every answer.
        stds: N standard deviations, in the unit of `rewards`, of a model with an uncertainty; else none.
        value_stds: The same in the unit of `values`, which a sigmoid does not change.
        members: With `members`: the raw rewards of the members of each of N sequences.
        columns: With `columns`: the raw columns of each of N sequences, of a model with an uncertainty; else none.
    """

    model: str
    weight_version: str
    rewards: list[float]
    values: list[float]
    tokens: list[int]
    truncated: list[bool]
    distinct_tokens: int = 0
    queued_seconds: float = 0.0
    run_seconds: float = 0.0
    pieces: list[str] = field(default_factory=list)
    label: str = "LABEL_0"
    stds: list[float] = field(default_factory=list)
    value_stds: list[float] = field(default_factory=list)
    members: list[list[float]] = field(default_factory=list)
    columns: list[list[float]] = field(default_factory=list)

    @property
    def truncated_items(self) -> int:
        """Number of sequences that were truncated."""
        return sum(self.truncated)


@dataclass(frozen=True)
class ModelInfo:
    """The properties of a served model that the information routes of the dialects give out.

    Attributes:
        name: Name under which it is served.
        weight_version: Version of its weights.
        created: Unix time at which this version was loaded.
        dtype: Precision of the weights, such as "float32".
        max_length: The most tokens of a sequence; `None` without a limit.
        trained_on: "texts", "conversations" or `None` where it is not known.
        has_chat_template: Whether conversations can be scored.
        label: The model's name of its one label.
        temperature: The saved temperature, if any.
        scale: Saved mean and standard deviation of the rewards, if any.
        layout: Layout of the batches: "forest", "padded" or "alone".
        fingerprint: Digest of the fingerprint that was saved with the model, if any.
        uncertainty: The constants of the model's uncertainty, which `uncertainty_from_dict` reads; `None` for a single
            model.
    """

    name: str
    weight_version: str
    created: int
    dtype: str
    max_length: int | None
    trained_on: str | None = None
    has_chat_template: bool = False
    label: str = "LABEL_0"
    temperature: float | None = None
    scale: tuple[float, float] | None = None
    layout: str = "forest"
    fingerprint: str | None = None
    uncertainty: dict[str, Any] | None = None


@dataclass(frozen=True)
class ServerInfo:
    """The served models, the first of which is the default, and the limits of the server.

    Attributes:
        models: The served models.
        version: Version of Plaudit.
        max_items: Most items of a request.
        max_tokens_per_batch: Distinct tokens of a step.
        max_queued_items: Most items that wait at once.
        truncates: Whether a sequence that is too long is truncated where the request does not say.
    """

    models: list[ModelInfo]
    version: str
    max_items: int
    max_tokens_per_batch: int
    max_queued_items: int
    truncates: bool = False
