"""Chunks of rows without a file."""

import pytest

from plaudit.data.reader import Chunk
from plaudit.scoring.worker import ScoredChunk


@pytest.fixture(scope="session")
def chunk_of():
    """The first chunk of a source with these rows."""
    return lambda rows, number=0, first=0: Chunk(number, first, list(rows), None)


@pytest.fixture(scope="session")
def scored_chunk():
    """A chunk as a worker returns it, of 10 tokens with one truncated sequence."""
    return lambda number, rows=(), rejected=(): ScoredChunk(number, list(rows), list(rejected), 10, 1, None)
