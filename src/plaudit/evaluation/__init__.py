"""Evaluation of a reward model on preferences, beside baselines that need no model."""
