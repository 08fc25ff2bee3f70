"""Audit of preference data: what is wrong with the rows, before a model is trained on them."""
