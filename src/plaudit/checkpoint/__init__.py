"""Saved reward models: metadata, atomic and complete writes, verification, merging and the model card."""
