"""A text as a short vector: latent semantic analysis (Deerwester et al., JASIS 1990).

Words and pairs of neighbouring words are hashed, weighted by TF-IDF and projected on the first singular vectors of
the training part's texts, so that texts with words in common, or with words that keep the same company, are near.
Fitting and encoding need scikit-learn, which is slow to import: only what uses this transform does.
"""

from importlib import import_module
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from features.errors import InputError
from features.settings import Settings
from features.transforms._fitting import Fitting
from features.transforms.vector import unit_length

YIELDS = ("vector",)


class Params(Settings):
    """Parameters of the analysis."""

    dim: int = Field(default=32, ge=1, le=1024)
    """Numbers of the vector."""
    buckets: int = Field(default=4096, ge=2, le=2**20)
    """Features that words and pairs of words are hashed into."""


def fit(data: Fitting, params: Params) -> dict[str, Any]:
    """Weights of the hashed words, `idf`, and the singular vectors, `components`: lists of `buckets` floats.

    There are as many components as the texts have, at most `dim`.

    Raises:
        InputError: the source holds no text.
    """
    if not isinstance(data.dtype, pl.String | pl.Null):
        raise InputError(f"'{data.source}' is {data.dtype}, not text; use another transform, or convert it")
    counts_BF = _vectorizer(params).transform(data.flat().cast(pl.String).to_list() or [""])
    counts_BF = counts_BF[counts_BF.getnnz(axis=1) > 0]
    if not counts_BF.shape[0]:
        return {"idf": [0.0] * params.buckets, "components": []}
    weights = _sklearn("feature_extraction.text").TfidfTransformer()
    weighted_BF = weights.fit_transform(counts_BF)
    analysis = _sklearn("decomposition").TruncatedSVD(min(params.dim, *weighted_BF.shape), random_state=0)
    # The last bits depend on the number of threads. The explained variance of a single text, not asked for, is 0 / 0.
    with import_module("threadpoolctl").threadpool_limits(1), np.errstate(invalid="ignore"):
        analysis.fit(weighted_BF)
    # Beyond the rank of the texts there is only rounding noise.
    kept = analysis.singular_values_ > _NOISE * analysis.singular_values_[0]
    return {"idf": weights.idf_.tolist(), "components": analysis.components_[kept].tolist()}


_NOISE = 1e-6


def expr(source: str, dtype: pl.DataType, params: Params, state: dict[str, Any]) -> pl.Expr:
    """Array(Float32, dim) of unit length; zeros for null, for no words, and for words that training did not see."""
    vectorizer = _vectorizer(params)
    projection_FD = np.zeros((params.buckets, params.dim))
    for place, component in enumerate(state["components"]):
        projection_FD[:, place] = np.multiply(state["idf"], component)

    def vector(values: pl.Series) -> pl.Series:
        texts = values.cast(pl.String).to_list()
        if not texts:
            return pl.Series(np.zeros((0, params.dim), dtype=np.float32))
        # Sparse times dense: SciPy sums up each row by itself, in the order of its words, without BLAS.
        return pl.Series(unit_length(vectorizer.transform(text or "" for text in texts) @ projection_FD))

    return pl.col(source).map_batches(vector, return_dtype=pl.Array(pl.Float32, params.dim), is_elementwise=True)


def width(params: Params, state: dict[str, Any]) -> int:
    """Numbers of the vector."""
    return params.dim


def _vectorizer(params: Params) -> Any:
    return _sklearn("feature_extraction.text").HashingVectorizer(
        n_features=params.buckets, ngram_range=(1, 2), alternate_sign=False, norm=None
    )


def _sklearn(module: str) -> Any:
    return import_module(f"sklearn.{module}")
