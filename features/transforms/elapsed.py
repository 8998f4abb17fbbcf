"""Time since another time of the same row, as log(1 + hours), standardised by the training part; never negative.

`item.created_at` with the default `until` is the age of the item at the moment of the request.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from features.settings import Settings
from features.transforms._fitting import Fitting, finite, fit_scale, float64, known, log1p, scaled

YIELDS = ("dense",)
_HOUR_MS = 3_600_000


class Params(Settings):
    """Parameters of the gap."""

    until: str = Field(default="timestamp", min_length=1)
    """Column of the later time, ms."""


def inputs(source: str, params: Params) -> tuple[str, ...]:
    """The earlier time and the later."""
    return source, params.until


def fit(data: Fitting, params: Params) -> dict[str, Any]:
    """Mean and standard deviation of the fitting frame, over rows where both times are known.

    Raises:
        InputError: one of the two is no time in milliseconds.
    """
    data.require_number()
    data.require_number(params.until)
    return fit_scale(data.frame, _log_hours(finite(_gap(data.source, data.dtype, params))))


def expr(source: str, dtype: pl.DataType, params: Params, state: dict[str, Any]) -> pl.Expr:
    """Float32; where one of the times is unknown, the mean."""
    gap = _gap(source, dtype, params)
    return known(scaled(_log_hours(gap), state), gap, None, missing=0.0).cast(pl.Float32)


def now(inputs: Sequence[np.ndarray], params: Params, state: dict[str, Any]) -> np.ndarray:
    """The same of float64 values, NaN where one is missing; float32."""
    gap = inputs[1] - inputs[0]
    raw = (log1p(np.maximum(gap, 0.0) / _HOUR_MS) - state["mean"]) / state["deviation"]
    return np.where(np.isfinite(gap), raw, 0.0).astype(np.float32)


def _gap(source: str, dtype: pl.DataType, params: Params) -> pl.Expr:
    """Milliseconds; finite only if both times are."""
    return float64(pl.col(params.until)) - float64(pl.col(source), dtype)


def _log_hours(gap: pl.Expr) -> pl.Expr:
    return (gap.clip(lower_bound=0) / _HOUR_MS).log1p()
