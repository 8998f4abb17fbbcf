"""Reward-interaction IPS of lists: each place by the weights down to it, as somebody reads who goes from top to bottom.

McInerney, Brost, Chandar, Mehrotra & Carterette, KDD 2020, https://arxiv.org/abs/2007.12986; without
its normalisation of weights.
"""

import numpy as np

from features.settings import Settings
from recsys.replay.estimators._contract import Slates, Terms, no_parameter
from recsys.replay.estimators._slates import product_bounds

TAKES = Slates
NEEDS_MODEL = False
ASSUMES = "As IPS; and the reward of a place depends on its own item and those above it, not on those below."


class Config(Settings):
    """Nothing to set."""


parameters = no_parameter


def terms(log: Slates, parameter: float) -> Terms:
    """Σ_s r_s Π_{t ≤ s} w_t."""
    value_R = (np.cumprod(log.weight_RS, axis=1) * log.reward_RS).sum(axis=1)
    return Terms(value_R, bounds=product_bounds(log, list(range(1, log.reward_RS.shape[1] + 1))))
