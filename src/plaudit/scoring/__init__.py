"""Scoring with a trained reward model."""
