"""What a transform is fitted on, and what several say of numbers: which are missing, and how they are scaled."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
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
    counted: Callable[[int], pl.Series] | None = None
    """What `values` answers, where the caller has counted already."""

    @property
    def dtype(self) -> pl.DataType:
        """Type of the source column."""
        return self.frame.schema[self.source]

    @property
    def element(self) -> pl.DataType:
        """Type of one value: of the elements, where the source is a column of lists."""
        return element(self.dtype)

    def flat(self) -> pl.Series:
        """Every value in the order of the rows, without nulls; the elements, where the source is a column of lists."""
        column = self.frame[self.source]
        flat = column.explode(empty_as_null=False) if isinstance(column.dtype, pl.List) else column
        return flat.drop_nulls()

    def values(self, min_count: int) -> pl.Series:
        """The distinct values seen at least `min_count` times, in the order in which they reached that count.

        More rows at the end can only add values at the end, so that the place of a value never changes meaning.
        """
        if self.counted is not None:
            return self.counted(min_count)
        flat = self.flat().alias("value")
        if min_count == 1:
            return flat.unique(maintain_order=True)
        reached = pl.col("row").get(min_count - 1, null_on_oob=True)
        rows = flat.to_frame().with_row_index("row").group_by("value").agg(reached).drop_nulls("row")
        return rows.sort("row")["value"]

    def require_number(self, column: str | None = None, lists: bool = False) -> None:
        """Refuse a source, or another `column` that a parameter names, that is not there or holds no numbers.

        Args:
            column: another column than the source.
            lists: take lists of numbers too.

        Raises:
            InputError: naming the column, and what it is.
        """
        column = column or self.source
        if column not in self.frame.columns:
            raise InputError(f"no column '{column}' beside {self.source} (found: {', '.join(self.frame.columns)})")
        dtype = self.frame.schema[column]
        value = element(dtype) if lists else dtype
        if not (value.is_numeric() or isinstance(value, pl.Boolean | pl.Null)):
            raise InputError(f"'{column}' is {dtype}, not a number; use lookup or hashing, or convert it")


def element(dtype: pl.DataType) -> pl.DataType:
    """Type of the elements of a list type; any other type is its own."""
    if not isinstance(dtype, pl.List):
        return dtype
    return dtype.inner if isinstance(dtype.inner, pl.DataType) else dtype.inner()


def fit_scale(frame: pl.DataFrame, value: pl.Expr) -> dict[str, Any]:
    """Mean and standard deviation of a Float64 expression; 0 and 1 where they are unknown, 1 for a constant."""
    values = frame.select(value.alias("value"))["value"].drop_nulls()
    mean, deviation = values.mean() or 0.0, values.std() or 0.0
    assert isinstance(mean, float)
    assert isinstance(deviation, float)
    # The deviation of a constant is rounding noise, not always 0.
    return {"mean": mean, "deviation": deviation if deviation > _NOISE * abs(mean) else 1.0}


_NOISE = 1e-12


def float64(value: pl.Expr, dtype: pl.DataType | None = None) -> pl.Expr:
    """A value as Float64; `dtype`, where it is known, spares a cast that would do nothing."""
    return value if isinstance(dtype, pl.Float64) else value.cast(pl.Float64, strict=False)


def finite(value: pl.Expr) -> pl.Expr:
    """A Float64 expression with null for what is no finite number, which counts as missing."""
    return pl.when(value.is_finite()).then(value)


def known(result: pl.Expr, given: pl.Expr, dtype: pl.DataType | None, missing: float) -> pl.Expr:
    """`result` where the Float64 number that it is made of is finite, `missing` elsewhere.

    One node of an expression costs a request some microseconds, so that there are as few as can be.

    Args:
        result: what is computed from `given`; null where that is.
        given: the number.
        dtype: the type that the number had in the frame, if that is known: integers need no check.
        missing: what stands for a null, a NaN or an infinity.
    """
    if dtype is not None and (dtype.is_integer() or isinstance(dtype, pl.Boolean | pl.Null)):
        return result.fill_null(missing)
    return pl.when(given.is_finite()).then(result).otherwise(missing)


def log1p(values: np.ndarray) -> np.ndarray:
    """log(1 + x) of float64 values, as Polars has it, bit by bit; NumPy's own differs in the last one."""
    return np.array([math.log1p(value) for value in values.tolist()], dtype=np.float64)


def scaled(value: pl.Expr, state: dict[str, Any]) -> pl.Expr:
    """Standardise by a fitted scale, so that 0 is the mean."""
    return (value - state["mean"]) / state["deviation"]
