"""IPS of whole lists: the reward of a list times the product of its places' weights.

The form that the estimators of lists are compared with in McInerney et al., KDD 2020, https://arxiv.org/abs/2007.12986.
Right however places act on each other; its variance grows exponentially with the length.
"""

from features.settings import Settings
from recsys.replay.estimators._contract import Slates, Terms, no_parameter
from recsys.replay.estimators._slates import product_bounds

TAKES = Slates
NEEDS_MODEL = False
ASSUMES = (
    "The propensities are right and the log could show every list that the target shows; places may act on each other."
)


class Config(Settings):
    """Nothing to set."""


parameters = no_parameter


def terms(log: Slates, parameter: float) -> Terms:
    """Π_s w_s Σ_s r_s."""
    places = log.reward_RS.shape[1]
    return Terms(log.weight_N * log.reward_RS.sum(axis=1), bounds=product_bounds(log, [places] * places))
