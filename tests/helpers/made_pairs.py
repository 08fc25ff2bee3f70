"""Pairs of random words, in which there is nothing to find, and near copies of them."""

import random

__all__ = ["made_pairs", "made_text", "near_copy"]

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "ar", "en") for c in "bdgklmnrst"]


def made_text(generator, least=5, most=60):
    return " ".join(generator.choice(WORDS) for _ in range(generator.randint(least, most)))


def made_pairs(count, seed=0):
    generator = random.Random(seed)
    return [{name: made_text(generator) for name in ("prompt", "chosen", "rejected")} for _ in range(count)]


def near_copy(row, share, seed=0):
    """Return a copy with a share of the words replaced."""
    generator = random.Random(seed)
    return {
        name: " ".join(generator.choice(WORDS) if generator.random() < share else word for word in value.split())
        for name, value in row.items()
    }
