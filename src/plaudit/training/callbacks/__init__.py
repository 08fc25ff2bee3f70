"""Callbacks of the trainer: signals, numbers that are not finite, the trial of the largest batch, the log."""
