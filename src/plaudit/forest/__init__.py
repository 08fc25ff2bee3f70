"""The token forest: batches of rows by their tokens, their layout as one packed row, and attention over it."""
