"""The user's or item's own index, or the list of item indices in the history: already resolved by the pipeline.

A history may be cut to its last events here; what the pipeline keeps is the most that can be asked for.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from features.errors import InputError
from features.settings import Settings
from features.transforms._fitting import Fitting

YIELDS = ("sparse", "bag")


class Params(Settings):
    """Parameters of the identity."""

    last: int | None = Field(default=None, gt=0)
    """For a history: how many of its last events; None for all that there are."""


def fit(data: Fitting, params: Params) -> dict[str, Any]:
    """The highest index of the vocabulary.

    Raises:
        InputError: the column holds no indices.
    """
    if data.highest_index is None:
        raise InputError(
            f"transform 'index' needs user.index, item.index or request.history, not {data.source}; use lookup"
        )
    return {"highest": data.highest_index}


def expr(source: str, dtype: pl.DataType, params: Params, state: dict[str, Any]) -> pl.Expr:
    """Int32 indices or List(Int32), unchanged but for the cut; a null becomes 0 or an empty list."""
    if isinstance(dtype, pl.List):
        return (pl.col(source).list.tail(params.last) if params.last else pl.col(source)).fill_null([])
    return (pl.col(source) if isinstance(dtype, pl.Int32) else pl.col(source).cast(pl.Int32)).fill_null(0)


def now(inputs: Sequence[np.ndarray], params: Params, state: dict[str, Any]) -> np.ndarray:
    """The same of float64 values, NaN where one is missing; int32."""
    return np.nan_to_num(inputs[0]).astype(np.int32)


def tail(params: Params) -> int | None:
    """How many of a list's last elements count; None: all."""
    return params.last


def rows(params: Params, state: dict[str, Any]) -> int:
    """Rows of the embedding table."""
    return state["highest"] + 1
