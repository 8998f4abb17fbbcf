"""Dictionary lookup: a value, or each value of a list, becomes its index; 0 is out of vocabulary.

The vocabulary holds the values of the fitting frame seen at least `min_count` times, most frequent first.
"""

from typing import Any

import polars as pl
from pydantic import Field

from features.errors import InputError
from features.settings import Settings
from features.transforms._fitting import Fitting

YIELDS = ("sparse", "bag")


class Params(Settings):
    """Parameters of the lookup."""

    min_count: int = Field(default=1, ge=1)
    """Values seen less often share index 0."""


def fit(data: Fitting, params: Params) -> dict[str, Any]:
    """The vocabulary, as `values`; the value at place i has index i + 1.

    Raises:
        InputError: the values are not text, numbers or booleans.
    """
    values = data.frame[data.source]
    inner = values.dtype.inner if isinstance(values.dtype, pl.List) else values.dtype
    if not (inner.is_numeric() or inner.is_(pl.String) or inner.is_(pl.Boolean) or inner.is_(pl.Null)):
        raise InputError(f"'{data.source}' holds {inner}; a dictionary takes text, numbers or booleans, so convert it")
    flat = (values.explode() if isinstance(values.dtype, pl.List) else values).drop_nulls()
    counts = flat.to_frame("value").group_by("value", maintain_order=True).len()
    kept = counts.filter(pl.col("len") >= params.min_count).sort("len", descending=True, maintain_order=True)
    return {"values": kept["value"].to_list()}


def expr(source: str, dtype: pl.DataType, params: Params, state: dict[str, Any]) -> pl.Expr:
    """Int32 indices, or List(Int32) for a list column; a null becomes 0 or an empty list."""
    known = pl.Series(state["values"])
    new = pl.Series(range(1, len(known) + 1), dtype=pl.Int32)

    def index(values: pl.Expr) -> pl.Expr:
        # A request may lack the column, or bring another type than the log had.
        return values.cast(known.dtype, strict=False).replace_strict(known, new, default=0, return_dtype=pl.Int32)

    if isinstance(dtype, pl.List):
        return pl.col(source).list.eval(index(pl.element()).fill_null(0)).fill_null([])
    return index(pl.col(source)).fill_null(0)


def rows(params: Params, state: dict[str, Any]) -> int:
    """Rows of the embedding table."""
    return len(state["values"]) + 1
