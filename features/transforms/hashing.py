"""The hashing trick: ids without a dictionary, at the price of collisions (Weinberger et al., ICML 2009).

The hash is SplitMix64 over the integer, or over the eight-byte BLAKE2b of the text, so that it is the same in
every process, on every machine, with every version of every library.
"""

import hashlib
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from features.settings import Settings
from features.transforms._fitting import Fitting

YIELDS = ("sparse",)


class Params(Settings):
    """Parameters of the hash."""

    buckets: int = Field(default=100_000, gt=0, lt=2**31 - 1)
    """Rows to hash into."""
    seed: int = Field(default=0, ge=0)
    """Another seed is another hash function."""


def fit(data: Fitting, params: Params) -> dict[str, Any]:
    """Nothing to learn."""
    return {}


def expr(source: str, dtype: pl.DataType, params: Params, state: dict[str, Any]) -> pl.Expr:
    """Int32 bucket in 1 … buckets; 0 for null."""
    offset = np.uint64(params.seed * 0x9E3779B97F4A7C15 % 2**64)

    def bucket(values: pl.Series) -> pl.Series:
        given = values.is_not_null()
        if values.dtype.is_integer():
            words = values.fill_null(0).cast(pl.Int64, wrap_numerical=True).to_numpy().view(np.uint64)
        else:
            # Text is hashed once per distinct value, not once per row.
            codes = values.cast(pl.String).fill_null("")
            distinct = codes.unique(maintain_order=True)
            hashed = [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) for text in distinct]
            words = codes.replace_strict(distinct, pl.Series(hashed, dtype=pl.UInt64)).to_numpy()
        mixed = splitmix64(words + offset)
        return pl.Series((mixed % np.uint64(params.buckets)).astype(np.int32) + 1) * given

    return pl.col(source).map_batches(bucket, return_dtype=pl.Int32, is_elementwise=True)


def rows(params: Params, state: dict[str, Any]) -> int:
    """Rows of the embedding table."""
    return params.buckets + 1


def splitmix64(words: np.ndarray) -> np.ndarray:
    """Steele, Lea & Flood's finaliser of 64-bit words (OOPSLA 2014); uint64 [N] → uint64 [N]."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
