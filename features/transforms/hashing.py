"""The hashing trick: ids without a dictionary, at the price of collisions (Weinberger et al., ICML 2009).

The hash is SplitMix64 over the integer, or over the eight-byte BLAKE2b of the text, so that it is the same in
every process, on every machine, with every version of every library.

With `unbounded` the hash itself is the id: 63 bits, practically without collisions. Which of them has a row of its own
is then decided while the model is trained; the config names such tables in [tables.managed].
"""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from features._hash import splitmix64
from features.errors import InputError
from features.settings import Settings
from features.transforms._fitting import Fitting

YIELDS = ("sparse", "bag")
MEMO = True
_FEW = 64

UNBOUNDED = 2**63 - 1
"""The rows of a feature whose ids have no bound: its ids are 0 … UNBOUNDED - 1, and no table has as many rows."""


class Params(Settings):
    """Parameters of the hash."""

    buckets: int = Field(default=100_000, gt=0, lt=2**31 - 1)
    """Rows to hash into."""
    seed: int = Field(default=0, ge=0)
    """Another seed is another hash function."""
    unbounded: bool = False
    """Whether to keep the whole hash, for a table that [tables.managed] names, in place of one of `buckets`."""

    @model_validator(mode="after")
    def _check(self) -> "Params":
        if self.unbounded and "buckets" in self.model_fields_set:
            raise ValueError(f"unbounded hashes are not put into buckets = {self.buckets}; remove one of the two")
        return self


def fit(data: Fitting, params: Params) -> dict[str, Any]:
    """Nothing to learn.

    Raises:
        InputError: the values are vectors or records.
    """
    if data.element.is_nested():
        raise InputError(f"'{data.source}' holds {data.element}, which is not one value; take it apart first")
    return {}


def expr(source: str, dtype: pl.DataType, params: Params, state: dict[str, Any]) -> pl.Expr:
    """Int32 bucket in 1 … buckets, or List(Int32) for a list column; a null becomes 0 or an empty list.

    Int64 in 1 … 2⁶³ - 2 where they are unbounded.
    """
    offset = seed_word(params.seed)
    made = pl.Int64 if params.unbounded else pl.Int32

    def bucket(values: pl.Series) -> pl.Series:
        hashes = splitmix64(_words(values) + offset)
        buckets = _to_ids(hashes) if params.unbounded else to_buckets(hashes, params.buckets)
        if values.null_count():
            buckets[values.is_null().to_numpy()] = 0
        return pl.Series(buckets)

    def index(values: pl.Expr) -> pl.Expr:
        return values.map_batches(bucket, return_dtype=made, is_elementwise=True)

    if isinstance(dtype, pl.List):
        return pl.col(source).list.eval(index(pl.element())).fill_null([])
    return index(pl.col(source))


def rows(params: Params, state: dict[str, Any]) -> int:
    """Rows of the embedding table."""
    return UNBOUNDED if params.unbounded else params.buckets + 1


def _words(values: pl.Series) -> np.ndarray:
    """Values → uint64 [N], whatever stands for a null; methods of a Series cost much for one row, so there are few."""
    if values.dtype.is_integer():
        whole = values.fill_null(0) if values.null_count() else values
        return whole.cast(pl.Int64, wrap_numerical=True).to_numpy().view(np.uint64)
    texts = values.cast(pl.String)
    if texts.null_count():
        texts = texts.fill_null("")
    if len(texts) <= _FEW:
        return _digests(texts)
    # Of many texts each distinct one is hashed once.
    distinct = texts.unique(maintain_order=True)
    return _digests(distinct)[texts.cast(pl.Enum(distinct)).to_physical().to_numpy()]


def _digests(texts: Iterable[str]) -> np.ndarray:
    hashed = [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) for text in texts]
    return np.array(hashed, dtype=np.uint64)


def seed_word(seed: int) -> np.uint64:
    """What a seed adds to the first word that is hashed."""
    return np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)


def to_buckets(hashes: np.ndarray, buckets: int) -> np.ndarray:
    """Hashes, uint64 [N] → 1 … buckets, int32 [N]."""
    return (hashes % np.uint64(buckets)).astype(np.int32) + 1


def _to_ids(hashes: np.ndarray) -> np.ndarray:
    """Hashes, uint64 [N] → 1 … UNBOUNDED - 1, int64 [N], in the order of their upper 63 bits."""
    return np.clip(hashes >> np.uint64(1), 1, UNBOUNDED - 1).astype(np.int64)
