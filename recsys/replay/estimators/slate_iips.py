"""Independent IPS of lists: each place by its own weight, as if what else is on the list did not matter.

Li et al., KDD 2018, https://arxiv.org/abs/1804.10488 (item-position click model).
"""

from features.settings import Settings
from recsys.replay.estimators._contract import Slates, Terms, no_parameter
from recsys.replay.estimators._slates import product_bounds

TAKES = Slates
NEEDS_MODEL = False
ASSUMES = "As IPS; and the reward of a place depends on its own item alone, not on the list's others."


class Config(Settings):
    """Nothing to set."""


parameters = no_parameter


def terms(log: Slates, parameter: float) -> Terms:
    """Σ_s w_s r_s."""
    value_R = (log.weight_RS * log.reward_RS).sum(axis=1)
    return Terms(value_R, bounds=product_bounds(log, [1] * log.reward_RS.shape[1]))
