"""A smoothed rate: (count + strength · prior) / (total + strength), where the prior is the rate of the training part.

The posterior mean of a Beta prior, so that an item seen twice is not the best item of all.
"""

from typing import Any

import polars as pl
from pydantic import Field

from features.settings import Settings
from features.transforms._fitting import Fitting

YIELDS = ("dense",)


class Params(Settings):
    """Parameters of the rate."""

    per: str
    """Column of totals beside the source's column of counts."""
    strength: float = Field(default=10.0, gt=0)
    """How many observations the prior weighs."""


def fit(data: Fitting, params: Params) -> dict[str, Any]:
    """The prior: all counts over all totals of the fitting frame."""
    count, total = data.frame[data.source].sum(), data.frame[params.per].sum()
    return {"prior": count / total if total else 0.0}


def expr(source: str, dtype: pl.DataType, params: Params, state: dict[str, Any]) -> pl.Expr:
    """Float32 difference from the prior, so that 0 is nothing known."""
    smoothed = (pl.col(source) + params.strength * state["prior"]) / (pl.col(params.per) + params.strength)
    return (smoothed - state["prior"]).cast(pl.Float32)
