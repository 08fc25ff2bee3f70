"""Loads a saved reward model as a stranger would and scores what it is given. A program of its own, without Plaudit.

    python reload.py ANSWER.json < request.json

It knows transformers and PEFT alone, and does what their users do: `from_pretrained(path, num_labels=1)`, the saved
tokenizer, right padding, `logits[:, 0]`. `plaudit.checkpoint.verify` starts it and reads the answer.
"""

import contextlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def main() -> None:
    """Answer the request on standard input into the file named on the command line."""
    with contextlib.suppress(OSError):  # where memory runs out after all, this process shall go, and not its parent
        Path("/proc/self/oom_score_adj").write_text("1000")
    answer = score(**json.load(sys.stdin))
    Path(sys.argv[1]).write_text(json.dumps(answer), encoding="utf-8")


@torch.no_grad()
def score(path: str, sequences: list[Any], ids: list[list[int]] | None = None, **options: Any) -> dict[str, Any]:
    """Load the model in `path` and score N texts or conversations, each alone and all in one padded batch.

    What is scored is `ids`, where given, so that a changed tokenizer is told apart from changed weights.
    """
    from transformers import AutoTokenizer

    code = {"trust_remote_code": options.pop("trust_remote_code", False)}
    adapter = Path(path, "adapter_config.json").is_file()
    model = as_trained(load(path, adapter, **options, **code))
    tokenizer = AutoTokenizer.from_pretrained(path, **code)
    if adapter:  # its base's configuration says nothing of the pad token; TRL sets it too
        model.config.pad_token_id = model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    rendered = [tokenize(tokenizer, sequence) for sequence in sequences]
    ids = ids or rendered
    alone = [model(**tensors([each], 0)).logits[0, 0].item() for each in ids]
    pad = model.config.get_text_config().pad_token_id
    batched = None if pad is None else model(**tensors(ids, pad)).logits[:, 0].tolist()
    dtype = str(model.dtype).removeprefix("torch.")
    del model  # before the next one
    used = ("transformers", "peft", "torch") if adapter else ("transformers", "torch")
    return {
        "rendered": rendered,
        "alone": alone,
        "batched": batched,
        "integrated": integrated(path, ids, **code) if adapter else None,
        "dtype": dtype,
        "engine": ", ".join(f"{name} {version(name)}" for name in used),
    }


def load(path: str, adapter: bool, quantization: dict[str, Any] | None = None, dtype: str = "auto", **code: Any) -> Any:
    """Plain `from_pretrained`; only an adapter needs to be told what its base was loaded in."""
    if not adapter:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, **code)
    from peft import AutoPeftModelForSequenceClassification

    of_base = options_of_base(quantization, dtype)
    return AutoPeftModelForSequenceClassification.from_pretrained(path, num_labels=1, **of_base, **code)


def options_of_base(quantization: dict[str, Any] | None, dtype: str) -> dict[str, Any]:
    """How an adapter's base was loaded for training."""
    from transformers.quantizers.auto import AutoQuantizationConfig

    quantized = {} if quantization is None else {"quantization_config": AutoQuantizationConfig.from_dict(quantization)}
    return {"dtype": dtype} | quantized


def as_trained(model: torch.nn.Module) -> Any:
    """In evaluation mode, but for bitsandbytes' layers: out of training they round more on a CPU than in it."""
    for module in model.eval().modules():
        if type(module).__module__.startswith("bitsandbytes"):
            module.training = True
    return model


def integrated(path: str, ids: list[list[int]], **code: Any) -> dict[str, Any] | str:
    """Rewards of an adapter as transformers loads one without PEFT's own call, or why it cannot."""
    try:
        return through_transformers(path, ids, **code)
    except (AttributeError, KeyError, OSError, TypeError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def through_transformers(path: str, ids: list[list[int]], **code: Any) -> dict[str, Any]:
    """Rewards of an adapter as TRL loads one: without PEFT's own call, and not told how its base was loaded."""
    from transformers import AutoModelForSequenceClassification

    model = as_trained(AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, **code))
    rewards = [model(**tensors([each], 0)).logits[0, 0].item() for each in ids]
    return {"rewards": rewards, "dtype": str(model.dtype).removeprefix("torch.")}


def tokenize(tokenizer: Any, sequence: Any) -> list[int]:
    """A conversation as the chat template writes it; a text with the tokenizer's special tokens and one EOS."""
    if not isinstance(sequence, str):
        return tokenizer(tokenizer.apply_chat_template(sequence, tokenize=False), add_special_tokens=False)["input_ids"]
    ids, eos = tokenizer(sequence)["input_ids"], tokenizer.eos_token_id
    return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]


def tensors(sequences: list[list[int]], pad: int) -> dict[str, torch.Tensor]:
    """One batch [N, L], padded on the right."""
    longest = max(map(len, sequences))
    return {
        "input_ids": torch.tensor([ids + [pad] * (longest - len(ids)) for ids in sequences]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences]),
    }


if __name__ == "__main__":
    main()
