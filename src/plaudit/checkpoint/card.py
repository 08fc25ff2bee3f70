"""The model card, `README.md`: how to use a saved reward model, and what it was trained on."""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeGuard

from huggingface_hub import ModelCard, ModelCardData

__all__ = ["TAGS", "write_model_card"]

# "reward-trainer" and "trl" are what TRL sets: the hub's filters find reward models by them.
TAGS = ("generated_from_trainer", "plaudit", "reward-trainer", "trl")

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

_TEMPLATE = """---
{card_data}
---

# {model_name}

A reward model: it scores how well a response answers its prompt. A higher reward is better, and only differences of
rewards have a meaning: `sigmoid(reward_a - reward_b)` is the probability that people prefer response a to response b.
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

{plain_use}{members}

## Training

Trained with Plaudit's `RewardTrainer`.

{options}

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

_PLAIN_ADAPTER = """This folder holds an adapter and the head. `plaudit merge` makes one plain model of the adapter and
its base, with the same scores. Plain PEFT gives the same scores if the base is loaded as in training:
`AutoPeftModelForSequenceClassification.from_pretrained("{location}", num_labels=1, dtype="{dtype}"{quantization})`,
{rendered}, right padding, `logits[:, 0]`."""
_QUANTIZED = """
The base was quantised: pass the `quantization_config` that `reward.json` has under `quantization`, or the scores are
those of other weights."""

_MEMBERS = """

The model has {members} heads, which lie in `heads.safetensors`; its reward is their mean. How far they disagree on a
reward is its standard deviation: `rewards, stds = reward_model.score([...], return_std=True)`."""

_VERSIONS = ("plaudit", "transformers", "torch", "datasets", "tokenizers")
_LEFT_OUT = ("runtime", "per_second", "epoch", "step", "grad_norm", "learning_rate")  # of the metrics


def write_model_card(
    folder: Path,
    *,
    model_name: str,
    location: str,
    options: dict[str, Any],
    training_metrics: dict[str, float],
    evaluation_metrics: dict[str, float],
    conversational: bool,
    base_model: str | None = None,
    dataset_name: str | None = None,
    rows: int | None = None,
    adapter: bool = False,
    dtype: str = "float32",
    quantized: bool = False,
    members: int = 0,
    tags: tuple[str, ...] = (),
) -> None:
    """Write `README.md`: data, options, metrics, how to use the model, and the tags that the hub filters by.

    `location` is the hub id or folder that the reader loads the model from, `rows` the number of training pairs;
    `dtype` and `quantized` describe how an adapter's base was loaded; `members` is the number of heads of an ensemble
    on one backbone. Metrics may be empty.
    """
    data = ModelCardData(
        base_model=base_model if _is_hub_id(base_model) else None,
        datasets=[dataset_name] if _is_hub_id(dataset_name) else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-classification",
        tags=sorted({*TAGS, *tags}),
        model_name=model_name,
    )
    on_data = f" on {dataset_name}" if dataset_name else ""
    pairs = f" ({rows:,} pairs)" if rows else ""
    base = f", starting from {base_model}" if base_model else ""
    plain_use = _PLAIN_ADAPTER + (_QUANTIZED if quantized else "") if adapter else _PLAIN_FULL
    text = _TEMPLATE.format(
        card_data=data.to_yaml(),
        model_name=model_name,
        origin=f"It was trained{on_data}{pairs}{base}.",
        location=location,
        examples=_EXAMPLES[conversational],
        plain_use=plain_use.format(
            location=location,
            rendered=_RENDERED[conversational],
            dtype=dtype,
            quantization=", quantization_config=..." if quantized else "",
        ),
        members=_MEMBERS.format(members=members) if members else "",
        options=_table("Option", {name: f"`{json.dumps(value)}`" for name, value in options.items()}),
        evaluation=_metrics(evaluation_metrics),
        last_interval=_metrics(training_metrics),
        versions="\n".join(f"- {name} {version(name)}" for name in _VERSIONS),
    )
    ModelCard(text, ignore_metadata_errors=True).save(folder / "README.md")


def _is_hub_id(name: str | None) -> TypeGuard[str]:
    return name is not None and not Path(name).exists() and _HUB_ID.fullmatch(name) is not None


def _metrics(metrics: dict[str, float]) -> str:
    shown = {
        name: f"{int(value):,}" if float(value).is_integer() and abs(value) >= 10 else f"{value:.4g}"
        for name, value in metrics.items()
        if not name.endswith(_LEFT_OUT)
    }
    return _table("Metric", shown) if shown else "None was measured."


def _table(kind: str, values: dict[str, str]) -> str:
    return "\n".join([f"| {kind} | Value |", "| --- | --- |", *(f"| `{name}` | {v} |" for name, v in values.items())])
