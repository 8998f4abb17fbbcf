"""64-bit hashes that are the same in every process, on every machine, with every version of every library."""

import hashlib

import numpy as np
import polars as pl

_GAMMA, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def splitmix64(words: np.ndarray) -> np.ndarray:
    """Steele, Lea & Flood's finaliser of 64-bit words (OOPSLA 2014), a bijection; uint64 [N] → uint64 [N]."""
    words = words + np.uint64(_GAMMA)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(_FIRST)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(_SECOND)
    return words ^ (words >> np.uint64(31))


def hash64(values: pl.Series) -> np.ndarray:
    """SplitMix64 of each integer, or of the eight-byte BLAKE2b of each text; uint64 [N], nulls as 0.

    Integers of different values have different hashes; two of n texts have the same one with a chance of n² / 2⁶⁵.
    """
    if values.dtype.is_integer():
        words = values.fill_null(0).cast(pl.Int64, wrap_numerical=True).to_numpy().view(np.uint64)
    else:
        digests = [_digest(text) for text in values.cast(pl.String).fill_null("")]
        words = np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)
    return splitmix64(words)


def hash_one(value: int | str) -> int:
    """`hash64` of one value."""
    word = ((value if isinstance(value, int) else int.from_bytes(_digest(value))) + _GAMMA) % 2**64
    word = (word ^ (word >> 30)) * _FIRST % 2**64
    word = (word ^ (word >> 27)) * _SECOND % 2**64
    return word ^ (word >> 31)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
