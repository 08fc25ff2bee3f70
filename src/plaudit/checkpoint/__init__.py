"""A folder that keeps its score: how it is saved, and what its files say."""
