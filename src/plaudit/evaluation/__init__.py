"""What a reward model has learnt, next to what can be learnt without it."""
