"""A vector that the data brings, say of an image or of a text model: numbers of a fixed count, taken together."""

from typing import Any

import numpy as np
import polars as pl
from polars.exceptions import ComputeError
from pydantic import Field

from features.errors import InputError
from features.settings import Settings
from features.transforms._fitting import Fitting

YIELDS = ("vector",)


class Params(Settings):
    """Parameters of the vector."""

    normalise: bool = Field(default=True)
    """Divide by the Euclidean length, so that every vector but zero has length 1."""


def fit(data: Fitting, params: Params) -> dict[str, Any]:
    """The `width` that all vectors have.

    Raises:
        InputError: the source holds no vectors, or such of different lengths.
    """
    dtype = data.dtype
    inner = dtype.inner if isinstance(dtype, pl.List | pl.Array) else dtype
    if not isinstance(dtype, pl.List | pl.Array) or not inner.is_numeric():
        raise InputError(f"'{data.source}' is {dtype}, not a list of numbers; use another transform, or convert it")
    column = data.frame[data.source]
    lengths = column.list.len() if isinstance(dtype, pl.List) else column.arr.len()
    found = lengths.drop_nulls().unique().sort().to_list()
    if len(found) != 1 or found[0] == 0:
        named = ", ".join(str(length) for length in found[:_NAMED]) + ", …" * (len(found) > _NAMED)
        raise InputError(
            f"'{data.source}' holds vectors of length {named}; give all the same, and null where there is none"
            if found
            else f"'{data.source}' has no vector in the training part; remove the feature"
        )
    return {"width": found[0]}


_NAMED = 5


def expr(source: str, dtype: pl.DataType, params: Params, state: dict[str, Any]) -> pl.Expr:
    """Array(Float32, width); a null, and in a vector whatever is no finite number, becomes 0."""
    array = pl.Array(pl.Float32, state["width"])

    def vector(values: pl.Series) -> pl.Series:
        try:
            # A copy, because what Polars hands out may be the frame itself.
            x_BD = np.array(values.cast(array).to_numpy(), dtype=np.float32)
        except ComputeError:
            raise InputError(f"'{source}' holds a vector that has not length {state['width']}; give it that") from None
        x_BD[~np.isfinite(x_BD)] = 0
        return pl.Series(unit_length(x_BD) if params.normalise else x_BD)

    return pl.col(source).map_batches(vector, return_dtype=array, is_elementwise=True)


def width(params: Params, state: dict[str, Any]) -> int:
    """Numbers of the vector."""
    return state["width"]


def unit_length(x_BD: np.ndarray) -> np.ndarray:
    """Vectors divided by their Euclidean length; [B, D] → float32 [B, D].

    Each is summed up by itself, in an order that does not depend on how many there are. What is shorter
    than a billionth is rounding noise and becomes zero.
    """
    length_B = np.sqrt(np.einsum("bd,bd->b", x_BD, x_BD, dtype=np.float64))
    scale_B = np.divide(1.0, length_B, out=np.zeros_like(length_B), where=length_B > _NOISE)
    return (x_BD * scale_B[:, None].astype(x_BD.dtype)).astype(np.float32, copy=False)


_NOISE = 1e-9
