"""A cross of sparse features: one index for each combination of theirs, hashed (wide & deep, Cheng et al., DLRS 2016).

The source and the columns of `with` are encoded sparse features; their order matters.

[[features]]
name = "genre_by_hour"
kind = "sparse"
source = "feature.genre"
transform = "cross"
params = { with = ["hour"] }
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field

from features._hash import splitmix64
from features.errors import InputError
from features.settings import Settings
from features.transforms._fitting import Fitting
from features.transforms.hashing import seed_word, to_buckets

YIELDS = ("sparse",)


class Params(Settings):
    """Parameters of the cross."""

    with_: tuple[Annotated[str, Field(min_length=1)], ...] = Field(alias="with", min_length=1)
    """The other encoded sparse features; written `with`."""
    buckets: int = Field(default=100_000, gt=0, lt=2**31 - 1)
    """Rows to hash into."""
    seed: int = Field(default=0, ge=0)
    """Another seed is another hash function."""


def inputs(source: str, params: Params) -> tuple[str, ...]:
    """All features that are crossed."""
    return source, *params.with_


def fit(data: Fitting, params: Params) -> dict[str, Any]:
    """Nothing to learn.

    Raises:
        InputError: a column is not there, or holds no indices.
    """
    for column in inputs(data.source, params):
        dtype = data.frame.schema.get(column)
        if dtype is None:
            raise InputError(
                f"no sparse feature '{column}' to cross {data.source} with (found: {', '.join(data.frame.columns)})"
            )
        if not (dtype.is_integer() or isinstance(dtype, pl.Null)):
            raise InputError(f"'{column}' is {dtype}, not an index; cross {data.source} with sparse features only")
    return {}


def expr(source: str, dtype: pl.DataType, params: Params, state: dict[str, Any]) -> pl.Expr:
    """Int32 bucket in 1 … buckets; 0 only where every index is 0 or null."""

    def bucket(columns: Sequence[pl.Series]) -> pl.Series:
        whole = (column.fill_null(0) if column.null_count() else column for column in columns)
        return pl.Series(_combined([column.to_numpy().view(np.uint64) for column in whole], params))

    columns = [pl.col(column).cast(pl.Int64) for column in inputs(source, params)]
    return pl.map_batches(columns, bucket, return_dtype=pl.Int32, is_elementwise=True)


def now(inputs: Sequence[np.ndarray], params: Params, state: dict[str, Any]) -> np.ndarray:
    """The same of int32 indices; int32."""
    return _combined([column.astype(np.int64).view(np.uint64) for column in inputs], params)


def _combined(columns: Sequence[np.ndarray], params: Params) -> np.ndarray:
    hashes = np.full(len(columns[0]), seed_word(params.seed))
    anything = np.zeros_like(hashes)
    for words in columns:
        hashes, anything = splitmix64(hashes ^ words), anything | words
    return np.where(anything == 0, np.int32(0), to_buckets(hashes, params.buckets))


def rows(params: Params, state: dict[str, Any]) -> int:
    """Rows of the embedding table."""
    return params.buckets + 1
