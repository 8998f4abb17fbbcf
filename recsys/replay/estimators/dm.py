"""Direct method: what a reward model expects of the target's actions; the log's own rewards only teach it.

Beygelzimer & Langford, KDD 2009, https://arxiv.org/abs/0812.4044. As right as its model is;
its interval knows nothing of the model's bias.
"""

from features.settings import Settings
from recsys.replay.estimators._contract import Logged, Terms, no_parameter, predictions

TAKES = Logged
NEEDS_MODEL = True
ASSUMES = (
    "The reward model is right for what the target does, wherever that is; nothing in the log can tell whether it is."
)


class Config(Settings):
    """Nothing to set."""


parameters = no_parameter


def terms(log: Logged, parameter: float) -> Terms:
    """q̂(x, π)."""
    return Terms(predictions(log)[1])
