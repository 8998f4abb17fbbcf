"""Doubly robust with optimistically shrunk weights, between the direct method (λ = 0) and DR (λ = ∞).

Su, Dimakopoulou, Krishnamurthy & Dudík, ICML 2020, https://arxiv.org/abs/1907.09623: λ w / (w² + λ) is the weight
that makes their bound of the squared error least where the model is trusted.
"""

import numpy as np
from pydantic import Field

from features.settings import Settings
from recsys.replay.estimators._contract import (
    Floats,
    Logged,
    Terms,
    corrected_bounds,
    greatest_weight,
    levels,
    predictions,
)

TAKES = Logged
NEEDS_MODEL = True
ASSUMES = "As DR where weights are small; where they are shrunk, the reward model is nearly right."


class Config(Settings):
    """How much to shrink."""

    strength: float | None = Field(default=None, ge=0)
    """λ; None: chosen among 0 and squares of quantiles of the weights by the bound of the error."""


def parameters(config: Config, weight_N: Floats) -> tuple[float, ...]:
    """λ, or those to choose among."""
    if config.strength is not None:
        return config.strength, np.inf
    return (0.0, *(level**2 for level in levels(weight_N)))


def terms(log: Logged, parameter: float) -> Terms:
    """q̂(x, π) + ŵ (r - q̂(x, a)), where ŵ = λ w / (w² + λ)."""
    model_N, model_target_N = predictions(log)
    weight_N = log.weight_N
    if parameter == 0:
        kept_N = np.zeros_like(weight_N)
    elif np.isinf(parameter):
        kept_N = weight_N
    else:
        kept_N = parameter * weight_N / (weight_N**2 + parameter)
    value_N = model_target_N + kept_N * (log.reward_N - model_N)
    return Terms(value_N, None, kept_N, corrected_bounds(log, greatest_weight(log)) if np.isinf(parameter) else None)
