"""A smoothed rate: (count + strength · prior) / (total + strength), where the prior is the rate of the training part.

The posterior mean of a Beta prior, so that an item seen twice is not the best item of all.
"""

from typing import Any

import polars as pl
from pydantic import Field

from features.settings import Settings
from features.transforms._fitting import Fitting, number

YIELDS = ("dense",)


class Params(Settings):
    """Parameters of the rate."""

    per: str
    """Column of totals beside the source's column of counts."""
    strength: float = Field(default=10.0, gt=0)
    """How many observations the prior weighs."""


def fit(data: Fitting, params: Params) -> dict[str, Any]:
    """The prior: all counts over all totals of the fitting frame.

    Raises:
        InputError: one of the two columns holds no numbers.
    """
    data.require_number()
    data.require_number(params.per)
    count, total = data.frame.select(number(data.source).sum().alias("c"), number(params.per).sum().alias("t")).row(0)
    return {"prior": count / total if total else 0.0}


def expr(source: str, dtype: pl.DataType, params: Params, state: dict[str, Any]) -> pl.Expr:
    """Float32 difference from the prior, so that 0 is nothing known."""
    smoothed = (number(source) + params.strength * state["prior"]) / (number(params.per) + params.strength)
    return (smoothed - state["prior"]).fill_null(0.0).cast(pl.Float32)
