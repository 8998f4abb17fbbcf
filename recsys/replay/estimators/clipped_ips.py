"""IPS with weights cut off at a level: less variance, and a bias towards 0 that is shown beside it.

Ionides, JCGS 2008, https://doi.org/10.1198/106186008X320456; Bottou et al., JMLR 2013, https://arxiv.org/abs/1209.2355.
"""

import numpy as np
from pydantic import Field

from features.settings import Settings
from recsys.replay.estimators._contract import Floats, Logged, Terms, greatest_weight, levels, weighted_bounds

TAKES = Logged
NEEDS_MODEL = False
ASSUMES = "As IPS; and what the actions of cut weights earn beyond the cut is little: the bias shown beside it."


class Config(Settings):
    """Where to cut."""

    clip: float | None = Field(default=None, gt=0)
    """Greatest weight; None: chosen among quantiles of the weights by the bound of the error."""


def parameters(config: Config, weight_N: Floats) -> tuple[float, ...]:
    """The level that is set, or those to choose among."""
    return levels(weight_N) if config.clip is None else (config.clip, np.inf)


def terms(log: Logged, parameter: float) -> Terms:
    """min(w, λ) r."""
    kept_N = np.minimum(log.weight_N, parameter)
    bounds = weighted_bounds(log, greatest_weight(log)) if np.isinf(parameter) else None
    return Terms(kept_N * log.reward_N, None, kept_N, bounds)
