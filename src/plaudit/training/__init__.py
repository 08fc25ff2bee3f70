"""Training: configuration, collator and trainer."""
