"""A smoothed rate: (count + strength · prior) / (total + strength), where the prior is the rate of the training part.

The posterior mean of a Beta prior, so that an item seen twice is not the best item of all.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from features.settings import Settings
from features.transforms._fitting import Fitting, finite, float64, known

YIELDS = ("dense",)


class Params(Settings):
    """Parameters of the rate."""

    per: str = Field(min_length=1)
    """Column of totals beside the source's column of counts."""
    strength: float = Field(default=10.0, gt=0)
    """How many observations the prior weighs."""


def inputs(source: str, params: Params) -> tuple[str, ...]:
    """The counts and the totals."""
    return source, params.per


def fit(data: Fitting, params: Params) -> dict[str, Any]:
    """The prior: all counts over all totals of the fitting frame.

    Raises:
        InputError: one of the two columns holds no numbers.
    """
    data.require_number()
    data.require_number(params.per)
    count, total = (finite(float64(pl.col(column))).sum() for column in (data.source, params.per))
    count, total = data.frame.select(count.alias("count"), total.alias("total")).row(0)
    return {"prior": count / total if total else 0.0}


def expr(source: str, dtype: pl.DataType, params: Params, state: dict[str, Any]) -> pl.Expr:
    """Float32 difference from the prior, so that 0 is nothing known."""
    count, total = float64(pl.col(source), dtype), float64(pl.col(params.per))
    smoothed = (count + params.strength * state["prior"]) / (total + params.strength)
    return known(smoothed - state["prior"], count + total, None, missing=0.0).cast(pl.Float32)


def now(inputs: Sequence[np.ndarray], params: Params, state: dict[str, Any]) -> np.ndarray:
    """The same of float64 values, NaN where one is missing; float32."""
    count, total = inputs
    smoothed = (count + params.strength * state["prior"]) / (total + params.strength)
    return np.where(np.isfinite(count + total), smoothed - state["prior"], 0.0).astype(np.float32)
