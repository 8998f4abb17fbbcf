"""Made-up words for made-up things: every category has a name and a small vocabulary that no other one shares."""

import polars as pl

PER_CATEGORY = 32
"""Words in a category's vocabulary, its name among them."""

_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
_DISTINCT = len(_SYLLABLES) ** 3
_STRIDE = 61_837
"""Coprime to `_DISTINCT`, so that neighbouring numbers give words that look nothing alike, and no word comes twice."""

MAX_CATEGORIES = _DISTINCT // PER_CATEGORY


def vocabulary(categories: int) -> pl.Series:
    """The words of all categories, String `[categories * PER_CATEGORY]`; category `k` owns the `k`-th run of them."""
    base = len(_SYLLABLES)
    codes = ((1 + number) * _STRIDE % _DISTINCT for number in range(categories * PER_CATEGORY))
    words = [_SYLLABLES[c % base] + _SYLLABLES[c // base % base] + _SYLLABLES[c // base**2] for c in codes]
    return pl.Series("word", words, dtype=pl.String)


def names(categories: int) -> pl.Series:
    """The categories' names, String `[categories]`: the first word of each vocabulary."""
    return vocabulary(categories).gather_every(PER_CATEGORY)
