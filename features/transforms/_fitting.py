"""What a transform is fitted on, and the standardisation that several share."""

from dataclasses import dataclass
from typing import Any

import polars as pl


@dataclass(frozen=True)
class Fitting:
    """The training part's view of one source column."""

    frame: pl.DataFrame
    """The table that holds the column: the user or item table, or the training examples."""
    source: str
    """The column."""
    highest_index: int | None = None
    """For a column of vocabulary indices: the highest there is, seen in training or not."""

    @property
    def dtype(self) -> pl.DataType:
        """Type of the source column."""
        return self.frame.schema[self.source]


def fit_scale(frame: pl.DataFrame, value: pl.Expr) -> dict[str, Any]:
    """Mean and standard deviation of an expression; 0 and 1 where they are unknown, 1 for a constant."""
    values = frame.select(value.cast(pl.Float64).alias("value"))["value"].drop_nulls()
    mean, deviation = values.mean(), values.std()
    return {"mean": mean or 0.0, "deviation": deviation or 1.0}


def scaled(value: pl.Expr, state: dict[str, Any]) -> pl.Expr:
    """Standardise by a fitted scale; what is missing becomes 0, the mean. Float32."""
    return ((value - state["mean"]) / state["deviation"]).fill_null(0.0).cast(pl.Float32)
