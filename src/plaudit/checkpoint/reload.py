"""Load a saved reward model and score sequences as a user of plain transformers would. A program without Plaudit.

    python reload.py ANSWER.json < request.json

It imports transformers and PEFT alone and does what their users do: `from_pretrained(path, num_labels=1)`, the saved
tokenizer, right padding, `logits[:, 0]`. `plaudit.checkpoint.fresh_process` starts it and reads the answer.
"""

import contextlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def main() -> None:
    """Score the request on standard input (the arguments of `score`) into the file named on the command line."""
    with contextlib.suppress(OSError):  # if memory runs out, the kernel must end this process and not its parent
        Path("/proc/self/oom_score_adj").write_text("1000")
    answer = score(**json.load(sys.stdin))
    Path(sys.argv[1]).write_text(json.dumps(answer), encoding="utf-8")


@torch.no_grad()
def score(path: str, sequences: list[Any], ids: list[list[int]] | None = None, **options: Any) -> dict[str, Any]:
    """Load the model in `path` and score N texts or conversations, each alone and all in one padded batch.

    Args:
        path: A folder with a whole model or an adapter.
        sequences: N texts or conversations; their token ids are returned as `rendered`.
        ids: The N lists of token ids to score in place of these, so that a changed tokenizer is told apart from changed
            weights.
        **options: `trust_remote_code`; `heads`, the path of the members of an ensemble; for an adapter the `dtype` and
            `quantization` its base was trained with.

    Returns:
        `rendered` [N] token ids; rewards [N] `alone` and `batched` (`None` without a pad token); `members`, the rewards
        [N][K] with each member in place of the head, or `None`; `as_trl`, an adapter's rewards as TRL loads it, or why
        it cannot be; `dtype`; `engine`, the versions of the libraries.
    """
    from transformers import AutoTokenizer

    # The first call of MKL's vector mathematics is not thread-safe: with one element, one thread makes it
    # (https://github.com/pytorch/pytorch/issues/188792).
    torch.zeros(1).cos()
    code = {"trust_remote_code": options.pop("trust_remote_code", False)}
    heads = options.pop("heads", None)
    adapter = Path(path, "adapter_config.json").is_file()
    model = evaluation_mode(load(path, adapter, **options, **code))
    tokenizer = AutoTokenizer.from_pretrained(path, **code)
    if adapter:  # the base's configuration may name no pad token; TRL sets it too
        model.config.pad_token_id = model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    rendered = [tokenize(tokenizer, sequence) for sequence in sequences]
    ids = ids or rendered
    alone = score_alone(model, ids)
    pad = model.config.get_text_config().pad_token_id
    batched = None if pad is None else model(**tensors(ids, pad)).logits[:, 0].tolist()
    dtype = str(model.dtype).removeprefix("torch.")
    members = None if heads is None else score_members(model, ids, heads)
    del model  # frees the memory before the next model is loaded
    used = ("transformers", "peft", "torch") if adapter else ("transformers", "torch")
    return {
        "rendered": rendered,
        "alone": alone,
        "batched": batched,
        "members": members,
        "as_trl": score_as_trl(path, ids, **code) if adapter else None,
        "dtype": dtype,
        "engine": ", ".join(f"{name} {version(name)}" for name in used),
    }


def load(path: str, adapter: bool, quantization: dict[str, Any] | None = None, dtype: str = "auto", **code: Any) -> Any:
    """Load a model by plain `from_pretrained`, the base of an adapter with the dtype and quantisation of training."""
    if not adapter:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, **code)
    from peft import AutoPeftModelForSequenceClassification
    from transformers.quantizers.auto import AutoQuantizationConfig

    base: dict[str, Any] = {"dtype": dtype}
    if quantization is not None:
        base["quantization_config"] = AutoQuantizationConfig.from_dict(quantization)
    return AutoPeftModelForSequenceClassification.from_pretrained(path, num_labels=1, **base, **code)


def evaluation_mode(model: torch.nn.Module) -> Any:
    """Set evaluation mode, except in bitsandbytes' layers, which on a CPU round more in it than in training mode."""
    for module in model.eval().modules():
        if type(module).__module__.startswith("bitsandbytes"):
            module.training = True
    return model


def score_alone(model: Any, ids: list[list[int]]) -> list[float]:
    """Score N sequences one at a time."""
    return [model(**tensors([each], 0)).logits[0, 0].item() for each in ids]


def score_members(model: Any, ids: list[list[int]], heads: str) -> list[list[float]]:
    """Score N sequences with each of K members in place of the model's head: [N][K]. The head is lost."""
    from safetensors.torch import load_file

    members = load_file(heads)
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    for name, module in plain.named_modules():
        is_inside = name.startswith(f"{plain.base_model_prefix}.")
        if isinstance(module, torch.nn.Linear) and module.out_features == 1 and not is_inside:  # under PEFT, two
            module.float()
            module.weight = torch.nn.Parameter(members["weight"])
            if "bias" in members:
                module.bias = torch.nn.Parameter(members["bias"])
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    return [model(**tensors([each], 0)).logits[0].tolist() for each in ids]


def score_as_trl(path: str, ids: list[list[int]], **code: Any) -> dict[str, Any] | str:
    """Score with an adapter as TRL loads one: without PEFT's own call, dtype or quantisation.

    Returns:
        `rewards` [N] and `dtype`; the error as text if transformers cannot load or run it.
    """
    from transformers import AutoModelForSequenceClassification

    try:
        model = evaluation_mode(AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, **code))
        return {"rewards": score_alone(model, ids), "dtype": str(model.dtype).removeprefix("torch.")}
    except (AttributeError, KeyError, OSError, TypeError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def tokenize(tokenizer: Any, sequence: Any) -> list[int]:
    """Tokenise a conversation as the chat template writes it; a text with its special tokens and one EOS."""
    if not isinstance(sequence, str):
        return tokenizer(tokenizer.apply_chat_template(sequence, tokenize=False), add_special_tokens=False)["input_ids"]
    ids, eos = tokenizer(sequence)["input_ids"], tokenizer.eos_token_id
    return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]


def tensors(sequences: list[list[int]], pad: int) -> dict[str, torch.Tensor]:
    """Make one batch [N, L], padded on the right."""
    longest = max(map(len, sequences))
    return {
        "input_ids": torch.tensor([ids + [pad] * (longest - len(ids)) for ids in sequences]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences]),
    }


if __name__ == "__main__":
    main()
