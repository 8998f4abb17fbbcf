"""A number: optionally log(1 + x), optionally standardised by the mean and deviation of the training part."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from features.settings import Settings
from features.transforms._fitting import Fitting, finite, fit_scale, float64, known, log1p, scaled

YIELDS = ("dense",)


class Params(Settings):
    """Parameters of the scaling."""

    log: bool = False
    """Take log(1 + x) first; x below 0 counts as 0."""
    standardise: bool = True
    """Subtract the mean, divide by the standard deviation."""


def fit(data: Fitting, params: Params) -> dict[str, Any]:
    """Mean and standard deviation (1 where it is 0 or unknown) of the fitting frame.

    Raises:
        InputError: the source holds no numbers.
    """
    data.require_number()
    return fit_scale(data.frame, _raw(finite(float64(pl.col(data.source))), params))


def expr(source: str, dtype: pl.DataType, params: Params, state: dict[str, Any]) -> pl.Expr:
    """Float32; a missing value becomes the mean."""
    value = float64(pl.col(source), dtype)
    raw = _raw(value, params)
    if params.standardise:
        return known(scaled(raw, state), value, dtype, missing=0.0).cast(pl.Float32)
    return known(raw, value, dtype, missing=state["mean"]).cast(pl.Float32)


def now(inputs: Sequence[np.ndarray], params: Params, state: dict[str, Any]) -> np.ndarray:
    """The same of float64 values, NaN where one is missing; float32."""
    value = inputs[0]
    raw = log1p(np.maximum(value, 0.0)) if params.log else value
    if params.standardise:
        raw = (raw - state["mean"]) / state["deviation"]
    return np.where(np.isfinite(value), raw, 0.0 if params.standardise else state["mean"]).astype(np.float32)


def _raw(value: pl.Expr, params: Params) -> pl.Expr:
    return value.clip(lower_bound=0).log1p() if params.log else value
