"""Hour of the day or day of the week of a time, UTC."""

from typing import Any, Literal

import polars as pl

from features.settings import Settings
from features.transforms._fitting import Fitting

YIELDS = ("sparse",)
_ROWS = {"hour": 24, "weekday": 7}


class Params(Settings):
    """Parameters of the calendar."""

    part: Literal["hour", "weekday"] = "hour"
    """Which part of the date."""


def fit(data: Fitting, params: Params) -> dict[str, Any]:
    """Nothing to learn."""
    return {}


def expr(source: str, dtype: pl.DataType, params: Params, state: dict[str, Any]) -> pl.Expr:
    """Int32: hour 0 … 23, or weekday 0 (Monday) … 6."""
    date = pl.from_epoch(pl.col(source), time_unit="ms").dt
    return (date.hour() if params.part == "hour" else date.weekday() - 1).cast(pl.Int32)


def rows(params: Params, state: dict[str, Any]) -> int:
    """Rows of the embedding table."""
    return _ROWS[params.part]
