"""Hour of the day or day of the week of a time, UTC; 0 is an unknown time."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import polars as pl

from features.settings import Settings
from features.transforms._fitting import Fitting

YIELDS = ("sparse",)
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
_ROWS = {"hour": 25, "weekday": 8}


class Params(Settings):
    """Parameters of the calendar."""

    part: Literal["hour", "weekday"] = "hour"
    """Which part of the date."""


def fit(data: Fitting, params: Params) -> dict[str, Any]:
    """Nothing to learn.

    Raises:
        InputError: the source is no time in milliseconds.
    """
    data.require_number()
    return {}


def expr(source: str, dtype: pl.DataType, params: Params, state: dict[str, Any]) -> pl.Expr:
    """Int32: 1 + hour, or weekday 1 (Monday) … 7; 0 for null."""
    value = pl.col(source) if isinstance(dtype, pl.Int64) else pl.col(source).cast(pl.Int64, strict=False)
    date = pl.from_epoch(value, time_unit="ms").dt
    return (date.hour().cast(pl.Int32) + 1 if params.part == "hour" else date.weekday().cast(pl.Int32)).fill_null(0)


def now(inputs: Sequence[np.ndarray], params: Params, state: dict[str, Any]) -> np.ndarray:
    """The same of float64 values, NaN where one is missing; int32."""
    known = np.isfinite(inputs[0])
    time = np.where(known, inputs[0], 0.0).astype(np.int64)
    value = time // _HOUR_MS % 24 + 1 if params.part == "hour" else (time // _DAY_MS + 3) % 7 + 1
    return np.where(known, value, 0).astype(np.int32)


def rows(params: Params, state: dict[str, Any]) -> int:
    """Rows of the embedding table."""
    return _ROWS[params.part]
