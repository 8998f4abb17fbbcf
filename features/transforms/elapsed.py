"""Time since another time of the same row, as log(1 + hours), standardised by the training part; never negative."""

from typing import Any

import polars as pl

from features.settings import Settings
from features.transforms._fitting import Fitting, fit_scale, number, scaled

YIELDS = ("dense",)
_HOUR_MS = 3_600_000


class Params(Settings):
    """Parameters of the gap."""

    until: str = "timestamp"
    """Column of the later time, ms."""


def fit(data: Fitting, params: Params) -> dict[str, Any]:
    """Mean and standard deviation of the fitting frame, over rows where both times are known.

    Raises:
        InputError: one of the two is no time in milliseconds.
    """
    data.require_number()
    data.require_number(params.until)
    return fit_scale(data.frame, _log_hours(data.source, params))


def expr(source: str, dtype: pl.DataType, params: Params, state: dict[str, Any]) -> pl.Expr:
    """Float32; an unknown earlier time becomes the mean."""
    return scaled(_log_hours(source, params), state)


def _log_hours(source: str, params: Params) -> pl.Expr:
    return ((number(params.until) - number(source)).clip(lower_bound=0) / _HOUR_MS).log1p()
