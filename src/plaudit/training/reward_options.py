"""The fields of `RewardConfig` that are Plaudit's own, without the import of transformers that the class needs."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["CHOICES", "RewardOptions"]

CHOICES = {
    "batch_layout": ("auto", "forest", "padded"),
    "overlong": ("drop", "truncate", "error"),
    "loss_type": ("bradley_terry", "plackett_luce", "ties", "hinge"),
    "group_weighting": ("group", "comparison"),
}


@dataclass
class RewardOptions:
    """The options of reward training; `RewardConfig`, which adds those of transformers, documents and checks them."""

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of AdamW."})
    logging_steps: float = field(
        default=10, metadata={"help": "Steps between log entries; below 1, as a fraction of all steps."}
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Leave losses that are not finite out of the log; they end the run, which needs no filter."},
    )
    bf16: bool | None = field(
        default=None,
        metadata={"help": "bf16 mixed precision. Unset: on where the hardware computes it well and `fp16` is off."},
    )
    activation_checkpointing: bool | None = field(
        default=None,
        metadata={
            "help": "Recompute activations in the backward pass to save memory; on unless set to false.",
            "nargs": "?",
            "const": True,
        },
    )
    gradient_checkpointing: bool | None = field(
        default=None,
        metadata={"help": "The older name of `activation_checkpointing`.", "nargs": "?", "const": True},
    )

    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments for loading the model, as JSON; num_labels is always 1."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Allow models and tokenizers that ship their own code."}
    )
    reinit_head: bool = field(
        default=False, metadata={"help": "Draw the reward head anew instead of training on the one the model has."}
    )
    num_heads: int | None = field(
        default=None,
        metadata={"help": "Reward heads of an ensemble on one backbone; unset: as many as the model has."},
    )
    chat_template_path: str | None = field(
        default=None, metadata={"help": "Chat template: a Jinja file, a tokenizer folder or a hub id."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Turn off all dropout, an adapter's included."})
    max_length: int | None = field(default=1024, metadata={"help": "Most tokens of a sequence; none for no limit."})
    overlong: str = field(
        default="drop",
        metadata={
            "help": "Treatment of a pair longer than max_length; truncate cuts the prompt from the left.",
            "choices": list(CHOICES["overlong"]),
        },
    )
    overlong_max_fraction: float | None = field(
        default=None, metadata={"help": "Stop when more than this fraction of a split is dropped for its length."}
    )
    eos_token: str | None = field(default=None, metadata={"help": "Token that closes a text."})
    pad_token: str | None = field(default=None, metadata={"help": "Token to pad with; unset: one that is not EOS."})
    pad_to_multiple_of: int | str | None = field(
        default="auto", metadata={"help": "Pad lengths to a multiple of this; auto: 128 on Neuron, none elsewhere."}
    )
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise."})
    batch_layout: str = field(
        default="auto",
        metadata={
            "help": "Layout of a batch; auto: the best that the model allows.",
            "choices": list(CHOICES["batch_layout"]),
        },
    )
    max_tokens_per_batch: int | None = field(
        default=None,
        metadata={"help": "Most tokens of a batch, shared ones counted once, instead of a number of rows."},
    )
    group_by_prompt: bool = field(default=False, metadata={"help": "Place rows of one prompt in one batch."})
    loss_type: str = field(
        default="bradley_terry", metadata={"help": "Loss to minimise.", "choices": list(CHOICES["loss_type"])}
    )
    group_weighting: str = field(
        default="group",
        metadata={
            "help": "Unit that counts the same in the loss: each ranked group, or each comparison.",
            "choices": list(CHOICES["group_weighting"]),
        },
    )
    label_smoothing: float = field(default=0.0, metadata={"help": "Probability that a verdict is flipped, to 0.5."})
    tie_threshold: float | None = field(
        default=None, metadata={"help": "Threshold of loss_type ties, in reward units; learnt unless given."}
    )
    margin_from_scores: bool = field(
        default=False, metadata={"help": "The difference of a group's scores is the margin of a comparison."}
    )
    center_rewards_coefficient: float | None = field(
        default=None, metadata={"help": "Weight of mean((r_chosen + r_rejected)^2) in the loss; 0.01 is usual."}
    )
    activation_offloading: bool = field(
        default=False, metadata={"help": "Keep the tensors saved for backward on the CPU during the step."}
    )
    verify_on_save: bool = field(
        default=True,
        metadata={"help": "Reload the final model in a fresh process and prove that it scores the same."},
    )
