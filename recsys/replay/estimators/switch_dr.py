"""SWITCH-DR: doubly robust where the weight is at most τ, the model alone where it is greater.

Wang, Agarwal & Dudík, ICML 2017, https://arxiv.org/abs/1612.01205.
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
ASSUMES = "As DR for actions of small weights; for those of weights above τ the reward model is right."


class Config(Settings):
    """Where to switch."""

    tau: float | None = Field(default=None, ge=0)
    """Greatest weight that is corrected by; None: chosen among 0 and quantiles of the weights by the bound of the
    error."""


def parameters(config: Config, weight_N: Floats) -> tuple[float, ...]:
    """The level that is set, or those to choose among; 0 is the direct method, inf is DR."""
    return (0.0, *levels(weight_N)) if config.tau is None else (config.tau, np.inf)


def terms(log: Logged, parameter: float) -> Terms:
    """q̂(x, π) + w 1(w ≤ τ) (r - q̂(x, a))."""
    model_N, model_target_N = predictions(log)
    weight_N = log.weight_N
    kept_N = np.where(weight_N <= parameter, weight_N, 0.0)
    value_N = model_target_N + kept_N * (log.reward_N - model_N)
    return Terms(value_N, None, kept_N, corrected_bounds(log, greatest_weight(log)) if np.isinf(parameter) else None)
