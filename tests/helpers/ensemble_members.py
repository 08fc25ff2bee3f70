"""Members of an ensemble as folders: whole models, and adapters on one base."""

import torch
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, set_seed

from plaudit.checkpoint.metadata import write_metadata
from plaudit.models.adapters import add_adapter


def save_whole(folder, make_model, tokenizer, seed, metadata=None, **changes):
    """Save a whole model whose weights the seed decides; return its folder as text."""
    model = make_model(seed, **changes)
    model.config.pad_token_id = tokenizer.pad_token_id
    return finish(folder, model, tokenizer, metadata)


def save_adapter(folder, base, tokenizer, seed, metadata=None, **lora):
    """Save an adapter with a head of its own on the model in the folder `base`; return its folder as text."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    set_seed(seed)
    options = {"r": 4, "target_modules": ["q_proj", "up_proj"], "init_lora_weights": False} | lora
    model = add_adapter(model, LoraConfig(**options))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5 if "score" in name else 0.2)
    return finish(folder, model, tokenizer, {"training": {"weights": "float32"}} | (metadata or {}))


def finish(folder, model, tokenizer, metadata):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if metadata is not None:
        write_metadata(folder, metadata)
    return str(folder)


def measured(mean, std, **more):
    """`reward.json` of a training run that measured the scale of its rewards."""
    return {"rewards": {"mean": mean, "std": std, "of": "evaluation"}} | more
