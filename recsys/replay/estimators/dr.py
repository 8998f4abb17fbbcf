"""Doubly robust: the model's expectation, corrected by the weighted error that it makes on what was logged.

Dudík, Langford & Li, ICML 2011, https://arxiv.org/abs/1103.4601. Unbiased if either
the propensities or the model are right.
"""

from features.settings import Settings
from recsys.replay.estimators._contract import (
    Logged,
    Terms,
    corrected_bounds,
    greatest_weight,
    no_parameter,
    predictions,
)

TAKES = Logged
NEEDS_MODEL = True
ASSUMES = "The propensities are right and the log could take what the target takes, or else the reward model is right."


class Config(Settings):
    """Nothing to set."""


parameters = no_parameter


def terms(log: Logged, parameter: float) -> Terms:
    """q̂(x, π) + w (r - q̂(x, a))."""
    model_N, model_target_N = predictions(log)
    value_N = model_target_N + log.weight_N * (log.reward_N - model_N)
    return Terms(value_N, bounds=corrected_bounds(log, greatest_weight(log)))
