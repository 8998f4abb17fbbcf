"""Dictionary lookup: a value, or each value of a list, becomes its index; 0 is out of vocabulary.

The vocabulary holds the values of the fitting frame seen at least `min_count` times, most frequent first.
"""

from typing import Any

import polars as pl
from pydantic import Field

from features.settings import Settings
from features.transforms._fitting import Fitting

YIELDS = ("sparse", "bag")


class Params(Settings):
    """Parameters of the lookup."""

    min_count: int = Field(default=1, ge=1)
    """Values seen less often share index 0."""


def fit(data: Fitting, params: Params) -> dict[str, Any]:
    """The vocabulary, as `values`; the value at place i has index i + 1."""
    values = data.frame[data.source]
    flat = (values.explode() if isinstance(values.dtype, pl.List) else values).drop_nulls()
    counts = flat.to_frame("value").group_by("value", maintain_order=True).len()
    kept = counts.filter(pl.col("len") >= params.min_count).sort("len", descending=True, maintain_order=True)
    return {"values": kept["value"].to_list()}


def expr(source: str, dtype: pl.DataType, params: Params, state: dict[str, Any]) -> pl.Expr:
    """Int32 indices, or List(Int32) for a list column; a null becomes 0 or an empty list."""
    new = list(range(1, len(state["values"]) + 1))

    def index(values: pl.Expr) -> pl.Expr:
        return (
            values.replace_strict(state["values"], new, default=0, return_dtype=pl.Int32)
            if new
            else values.is_null() * 0
        )

    if isinstance(dtype, pl.List):
        return pl.col(source).list.eval(index(pl.element())).fill_null([])
    return index(pl.col(source)).fill_null(0).cast(pl.Int32)


def rows(params: Params, state: dict[str, Any]) -> int:
    """Rows of the embedding table."""
    return len(state["values"]) + 1
