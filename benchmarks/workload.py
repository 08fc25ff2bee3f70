"""What the benchmarks share: rows of a file, and a tokenizer and a small decoder made on the spot from them."""

import gzip
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen3Config,
    set_seed,
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)


def read_rows(path, limit=None):
    """The rows of a JSON-lines file, gzipped or not."""
    content = Path(path).read_bytes()
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    return [json.loads(line) for line in content.decode("utf-8").splitlines()][:limit]


def make_tokenizer(rows, vocab_size=8192):
    """A byte-level BPE tokenizer trained on the rows' text, with a chat template, and a pad that is not EOS."""
    special = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    texts = (json.dumps(row, ensure_ascii=False) for row in rows)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|pad|>", chat_template=CHAT_TEMPLATE
    )


def write_base_model(folder, rows, *, hidden=512, layers=6, vocab_size=8192, seed=0):
    """A Qwen3-shaped causal language model with random weights and its tokenizer, in a folder as the hub gives it."""
    set_seed(seed)
    tokenizer = make_tokenizer(rows, vocab_size)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 128),
        head_dim=64,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder), sum(parameter.numel() for parameter in model.parameters())


def write_reward_model(folder, rows, *, hidden=512, layers=6):
    """A reward model with a random head on `write_base_model`'s, saved in a folder; return the base's parameters."""
    base, size = write_base_model(Path(folder) / "base", rows, hidden=hidden, layers=layers)
    set_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return size
