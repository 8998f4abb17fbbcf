"""Self-normalised IPS: IPS over the mean weight, which is 1 only on average.

Swaminathan & Joachims, NeurIPS 2015, https://papers.nips.cc/paper/5748. Biased by the order of 1 / N, in return for
estimates within the range of the rewards, and unmoved by a constant added to all of them.
"""

from features.settings import Settings
from recsys.replay.estimators._contract import Logged, Terms, no_parameter

TAKES = Logged
NEEDS_MODEL = False
ASSUMES = "As IPS, and many rows: a ratio of two means is right only in the limit."


class Config(Settings):
    """Nothing to set."""


parameters = no_parameter


def terms(log: Logged, parameter: float) -> Terms:
    """The reward times its weight, over the weight."""
    weight_N = log.weight_N
    return Terms(weight_N * log.reward_N, weight_N)
