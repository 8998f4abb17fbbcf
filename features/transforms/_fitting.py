"""What a transform is fitted on, and the standardisation that several share."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from features.errors import InputError


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

    def require_number(self, column: str | None = None) -> None:
        """Refuse a source, or another `column` that a parameter names, that is not there or holds no numbers.

        Raises:
            InputError: naming the column, and what it is.
        """
        column = column or self.source
        if column not in self.frame.columns:
            raise InputError(f"no column '{column}' beside {self.source} (found: {', '.join(self.frame.columns)})")
        dtype = self.frame.schema[column]
        if not (dtype.is_numeric() or isinstance(dtype, pl.Boolean | pl.Null)):
            raise InputError(f"'{column}' is {dtype}, not a number; use lookup or hashing, or convert it")


def fit_scale(frame: pl.DataFrame, value: pl.Expr) -> dict[str, Any]:
    """Mean and standard deviation of a Float64 expression; 0 and 1 where they are unknown, 1 for a constant."""
    values = frame.select(value.alias("value"))["value"].drop_nulls()
    mean, deviation = values.mean() or 0.0, values.std() or 0.0
    assert isinstance(mean, float)
    assert isinstance(deviation, float)
    # The deviation of a constant is rounding noise, not always 0.
    return {"mean": mean, "deviation": deviation if deviation > _NOISE * abs(mean) else 1.0}


_NOISE = 1e-12


def number(column: str) -> pl.Expr:
    """A column as Float64; what is no finite number counts as missing."""
    value = pl.col(column).cast(pl.Float64, strict=False)
    return pl.when(value.is_finite()).then(value)


def scaled(value: pl.Expr, state: dict[str, Any]) -> pl.Expr:
    """Standardise by a fitted scale; what is missing becomes 0, the mean. Float32."""
    return ((value - state["mean"]) / state["deviation"]).fill_null(0.0).cast(pl.Float32)
