"""The model card: what a person who finds the folder needs to know to use it."""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

__all__ = ["TAGS", "write_model_card"]

# "reward-trainer" and "trl" are what TRL sets: the hub's filters find reward models by them.
TAGS = ("generated_from_trainer", "plaudit", "reward-trainer", "trl")

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

_TEMPLATE = """---
{card_data}
---

# {model_name}

A reward model: it scores how well a response answers its prompt. A higher reward is better, and only differences mean
something: `sigmoid(reward_a - reward_b)` is the probability that people prefer response a to response b.
{origin}

## Use

```python
from plaudit import RewardModel

reward_model = RewardModel.from_pretrained("{location}")
reward_model.score([
    {examples[0]},
    {examples[1]},
])
```

{plain_use}

## Training

{training}

### Evaluation

{evaluation}

### Last training interval

{last_interval}

### Versions

{versions}
"""

_EXAMPLES = {
    True: [
        f'[{{"role": "user", "content": "What is 2 + 2?"}}, {{"role": "assistant", "content": "{answer}"}}]'
        for answer in ("4.", "5.")
    ],
    False: ['"What is 2 + 2? 4."', '"What is 2 + 2? 5."'],  # prompt and response joined, as the rows were
}
_RENDERED = {
    True: "the conversation rendered by the\ntokenizer's chat template (which writes all special tokens)",
    False: "prompt and response joined and\nclosed by one EOS",
}

_PLAIN_FULL = """Plain transformers gives the same scores:
`AutoModelForSequenceClassification.from_pretrained("{location}", num_labels=1)`, {rendered},
right padding, `logits[:, 0]`."""

_PLAIN_ADAPTER = """This folder holds an adapter and the head. `plaudit merge` makes one plain model of them and
their base, with the same scores. Plain PEFT scores the same where the base is loaded as in training:
`AutoPeftModelForSequenceClassification.from_pretrained("{location}", num_labels=1, dtype="{dtype}"{quantized})`,
{rendered}, right padding, `logits[:, 0]`."""
_QUANTIZED = """
The base was quantised: pass the `quantization_config` that `reward.json` has under `quantization`, or other weights
score."""


def write_model_card(
    folder: Path,
    *,
    model_name: str,
    location: str,
    base_model: str | None,
    dataset_name: str | None,
    rows: int | None,
    options: dict[str, Any],
    training_metrics: dict[str, float],
    evaluation_metrics: dict[str, float],
    conversational: bool,
    adapter: bool = False,
    dtype: str = "float32",
    quantized: bool = False,
    tags: tuple[str, ...] = (),
) -> None:
    """Write `README.md`: data, configuration, metrics, how to use the model, and the tags by which the hub finds it.

    Args:
        folder: Where to write it.
        model_name: Its heading.
        location: Where the reader loads the model from: a hub id or a folder.
        base_model: What it started from.
        dataset_name: What it was trained on.
        rows: How many pairs that was.
        options: The options of the run worth knowing.
        training_metrics: The last entry of the training log; nothing is written that was not measured.
        evaluation_metrics: The last evaluation's.
        conversational: Whether it was trained on conversations, or on plain text.
        adapter: Whether the folder holds an adapter.
        dtype: The precision its base was loaded in.
        quantized: Whether its base was quantised.
        tags: Further tags.
    """
    on_hub = base_model is not None and not Path(base_model).is_dir() and _HUB_ID.fullmatch(base_model)
    data = ModelCardData(
        base_model=base_model if on_hub else None,
        datasets=[dataset_name] if dataset_name and _HUB_ID.fullmatch(dataset_name) else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-classification",
        tags=sorted({*TAGS, *tags}),
        model_name=model_name,
    )
    trained_on = f" on {dataset_name}" if dataset_name else ""
    pairs = f" ({rows:,} pairs)" if rows else ""
    origin = f"It was trained{trained_on}{pairs}" + (f", starting from {base_model}." if base_model else ".")
    text = _TEMPLATE.format(
        card_data=data.to_yaml(),
        model_name=model_name,
        origin=origin,
        location=location,
        examples=_EXAMPLES[conversational],
        plain_use=(_PLAIN_ADAPTER + _QUANTIZED * quantized if adapter else _PLAIN_FULL).format(
            location=location,
            rendered=_RENDERED[conversational],
            dtype=dtype,
            quantized=", quantization_config=..." * quantized,
        ),
        training="Loss: `-log sigmoid(r_chosen - r_rejected - margin)`, with Plaudit's `RewardTrainer`.\n\n"
        + _table(("Option", "Value"), [(f"`{name}`", f"`{json.dumps(value)}`") for name, value in options.items()]),
        evaluation=_figures(evaluation_metrics),
        last_interval=_figures(training_metrics),
        versions="\n".join(
            f"- {name} {version(name)}" for name in ("plaudit", "transformers", "torch", "datasets", "tokenizers")
        ),
    )
    ModelCard(text, ignore_metadata_errors=True).save(folder / "README.md")


_NOT_TOLD = ("runtime", "per_second", "epoch", "step", "grad_norm", "learning_rate")


def _figures(metrics: dict[str, float]) -> str:
    told = [(f"`{name}`", _shown(value)) for name, value in metrics.items() if not name.endswith(_NOT_TOLD)]
    return _table(("Metric", "Value"), told) if told else "None was measured."


def _shown(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() and abs(value) >= 10 else f"{value:.4g}"


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines)
