"""A number as one of some equally frequent buckets of the training part: what an embedding can learn any curve from.

Bucket i holds what is above edge i − 1 and not above edge i; 0 is an unknown number. Each number of a list, say of
the gaps between a person's events, is put into a bucket of its own.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from features.settings import Settings
from features.transforms._fitting import Fitting, element, float64, known

YIELDS = ("sparse", "bag")


class Params(Settings):
    """Parameters of the buckets."""

    buckets: int = Field(default=10, ge=2, le=1024)
    """How many at most: a value that is more frequent than a bucket leaves fewer."""


def fit(data: Fitting, params: Params) -> dict[str, Any]:
    """The `edges`: numbers of the training part, ascending, each once, all below the highest.

    Edge k is the smallest number with at least k / buckets of all numbers at or below it, so that no bucket is empty.

    Raises:
        InputError: the source holds no numbers.
    """
    data.require_number(lists=True)
    flat = data.flat().cast(pl.Float64, strict=False)
    ordered = np.sort(flat.filter(flat.is_finite()).to_numpy())
    if not len(ordered):
        return {"edges": []}
    edges = np.unique(ordered[(np.arange(1, params.buckets) * len(ordered) - 1) // params.buckets])
    return {"edges": edges[edges < ordered[-1]].tolist()}


def expr(source: str, dtype: pl.DataType, params: Params, state: dict[str, Any]) -> pl.Expr:
    """Int32 bucket in 1 … len(edges) + 1, or List(Int32) for a list column; a null becomes 0 or an empty list."""
    edges = pl.Series(state["edges"], dtype=pl.Float64)

    def index(values: pl.Expr) -> pl.Expr:
        number = float64(values, element(dtype))
        bucket = number.bin_intervals(edges, labels=False, right_closed=True) + 1
        return known(bucket, number, element(dtype), missing=0).cast(pl.Int32)

    if isinstance(dtype, pl.List):
        return pl.col(source).list.eval(index(pl.element())).fill_null([])
    return index(pl.col(source))


def now(inputs: Sequence[np.ndarray], params: Params, state: dict[str, Any]) -> np.ndarray:
    """The same of float64 values, NaN where one is missing; int32."""
    bucket = np.searchsorted(state["edges"], inputs[0]) + 1
    return np.where(np.isfinite(inputs[0]), bucket, 0).astype(np.int32)


def rows(params: Params, state: dict[str, Any]) -> int:
    """Rows of the embedding table."""
    return len(state["edges"]) + 2
