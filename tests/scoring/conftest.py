"""One saved tiny model for all tests of scoring, and chunks of rows without a file."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, Qwen3Config, set_seed

from plaudit.data.reader import Chunk
from plaudit.scoring.worker import ScoredChunk


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, new_tokenizer):
    """A reward model as a folder, with 1.5 and 0.25 as mean and standard deviation. Not to be changed: copy it."""
    set_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("models") / "model", new_tokenizer()
    config = Qwen3Config(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    config.mean, config.std = 1.5, 0.25
    model = AutoModelForSequenceClassification.from_config(config)
    torch.nn.init.normal_(model.score.weight, std=0.5)
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chunk_of():
    """The first chunk of a source with these rows."""
    return lambda rows, number=0, first=0: Chunk(number, first, list(rows), None)


@pytest.fixture(scope="session")
def scored_chunk():
    """A chunk as a worker returns it, of 10 tokens with one truncated sequence."""
    return lambda number, rows=(), rejected=(): ScoredChunk(number, list(rows), list(rejected), 10, 1, None)
