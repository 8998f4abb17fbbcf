"""Inverse propensity scoring: a reward counts as often as the target takes its action for once that the log did.

Horvitz & Thompson, JASA 1952, https://doi.org/10.1080/01621459.1952.10483446; for logged bandits Strehl et al.,
NeurIPS 2010, https://arxiv.org/abs/1003.0120. Unbiased; its variance grows with the greatest weights.
"""

from features.settings import Settings
from recsys.replay.estimators._contract import Logged, Terms, greatest_weight, no_parameter, weighted_bounds

TAKES = Logged
NEEDS_MODEL = False
ASSUMES = "The propensities are right, and the log could take every action that the target takes."


class Config(Settings):
    """Nothing to set."""


parameters = no_parameter


def terms(log: Logged, parameter: float) -> Terms:
    """The reward times its weight."""
    return Terms(log.weight_N * log.reward_N, bounds=weighted_bounds(log, greatest_weight(log)))
