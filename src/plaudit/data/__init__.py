"""Preference data: rows of the accepted formats, loaded, converted and tokenised to columns of token ids."""

from plaudit.data.dataset_conversion import convert
from plaudit.data.loading import load_source
from plaudit.data.published_layouts import CONVERTERS, arena, helpsteer, hh, ranked, ultrafeedback
from plaudit.data.rankings import comparisons_of_ranking, ties_of_ranking
from plaudit.data.splits import split_by_prompt

__all__ = [
    "CONVERTERS",
    "arena",
    "comparisons_of_ranking",
    "convert",
    "helpsteer",
    "hh",
    "load_source",
    "ranked",
    "split_by_prompt",
    "ties_of_ranking",
    "ultrafeedback",
]
