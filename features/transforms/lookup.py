"""Dictionary lookup: a value, or each value of a list, becomes its index; 0 is out of vocabulary.

The vocabulary holds the values of the fitting frame seen at least `min_count` times, in the order in which they
reached that count: rows added at the end of the frame add values at the end of the vocabulary, so that an index, and
the row of the embedding table that was trained for it, never changes meaning.
"""

import math
from typing import Any

import polars as pl
from pydantic import Field

from features.errors import InputError
from features.settings import Settings
from features.transforms._fitting import Fitting, element

YIELDS = ("sparse", "bag")
MEMO = True


class Params(Settings):
    """Parameters of the lookup."""

    min_count: int = Field(default=1, ge=1)
    """Values seen less often share index 0."""


def fit(data: Fitting, params: Params) -> dict[str, Any]:
    """The vocabulary, as `values`; the value at place i has index i + 1.

    Raises:
        InputError: the values are not text, numbers or booleans.
    """
    inner = data.element
    if not (inner.is_integer() or inner.is_float() or isinstance(inner, pl.String | pl.Boolean | pl.Null)):
        raise InputError(f"'{data.source}' holds {inner}; a dictionary takes text, numbers or booleans, so convert it")
    values = data.values(params.min_count).to_list()
    return {"values": [value for value in values if math.isfinite(value)] if inner.is_float() else values}


def expr(source: str, dtype: pl.DataType, params: Params, state: dict[str, Any]) -> pl.Expr:
    """Int32 indices, or List(Int32) for a list column; a null becomes 0 or an empty list."""
    known = pl.Series(state["values"], dtype=None if state["values"] else pl.String)
    # An Enum keeps its hash table; replace_strict builds one at every call, 40 ms for half a million values.
    indices = pl.Enum(pl.select(_spelt(pl.lit(known), known.dtype, known.dtype)).to_series())

    def index(values: pl.Expr) -> pl.Expr:
        value = _spelt(values, element(dtype), known.dtype)
        return value.cast(indices, strict=False).to_physical().cast(pl.Int32).fill_null(-1) + 1

    if isinstance(dtype, pl.List):
        return pl.col(source).list.eval(index(pl.element())).fill_null([])
    return index(pl.col(source))


def rows(params: Params, state: dict[str, Any]) -> int:
    """Rows of the embedding table."""
    return len(state["values"]) + 1


def _spelt(values: pl.Expr, dtype: pl.DataType, known: pl.DataType) -> pl.Expr:
    """Values as text, spelt as those of the vocabulary are; a request may bring another type than the log had."""
    if isinstance(dtype, pl.String) and isinstance(known, pl.String | pl.Boolean):
        return values
    value = values if dtype == known else values.cast(known, strict=False)
    if known.is_float():
        value = value.replace(0.0, 0.0)  # −0 is 0
    return value if isinstance(known, pl.String) else value.cast(pl.String)
