"""What an estimator is given, and what it gives back.

A file of this folder has

    TAKES              Logged or Slates
    NEEDS_MODEL        whether it asks for the predictions of a reward model
    ASSUMES            what must hold for its answer to be right, in a sentence for a reader
    Config             its settings
    parameters(config, weight_N)    values of its hyper-parameter to choose among, the unbiased one last; (inf,): none
    terms(log, parameter)           `Terms`: an estimate is the sum of values over the sum of weights

so that one pass over a log of any length serves all of them, and one bootstrap resamples all of them alike.

Shapes: N rows (one action each), R requests, S places of a slate.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from features import registry
from features.settings import Settings

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

PACKAGE = "recsys.replay.estimators"


@dataclass(frozen=True, kw_only=True)
class Logged:
    """A log of single actions: how likely each was, what came of it, and how likely it is under the target policy."""

    reward_N: Floats
    """What came of the logged action, float64 `[N]`."""
    propensity_N: Floats
    """The logging policy's probability of the logged action, in (0, 1]."""
    target_N: Floats
    """The target policy's probability of the same action in the same situation, in [0, 1]."""
    model_N: Floats | None = None
    """The reward model's expectation for the logged action, learned without this row; None: there is no model."""
    model_target_N: Floats | None = None
    """Its expectation under the target policy, Σ_a π(a | x) q̂(x, a)."""
    cluster_N: Ints | None = None
    """Rows of a number belong together (a request, a person): 0 … C - 1, each present. None: each row by itself."""
    unsupported_N: Floats | None = None
    """The target's probability of actions that the log could not take in that situation; None: not known."""
    weight_bound: float | None = None
    """The greatest weight that any action could have had; None: not known, the greatest observed stands in."""
    reward_range: tuple[float, float] = (0.0, 1.0)
    """Least and greatest possible reward."""

    def __len__(self) -> int:
        return len(self.reward_N)

    @property
    def weight_N(self) -> Floats:
        """Importance weights: target over propensity."""
        return self.target_N / self.propensity_N

    def rows(self, which: slice | NDArray[np.bool_]) -> "Logged":
        """Some of the rows. A slice copies nothing; clusters keep their numbers."""
        return Logged(
            reward_N=self.reward_N[which],
            propensity_N=self.propensity_N[which],
            target_N=self.target_N[which],
            model_N=None if self.model_N is None else self.model_N[which],
            model_target_N=None if self.model_target_N is None else self.model_target_N[which],
            cluster_N=None if self.cluster_N is None else self.cluster_N[which],
            unsupported_N=None if self.unsupported_N is None else self.unsupported_N[which],
            weight_bound=self.weight_bound,
            reward_range=self.reward_range,
        )


@dataclass(frozen=True, kw_only=True)
class Slates:
    """A log of whole lists, place by place from the top. A list is worth the sum of its places' rewards.

    An empty place of a shorter list has reward 0 and both probabilities 1.
    """

    reward_RS: Floats
    propensity_RS: Floats
    target_RS: Floats
    cluster_R: Ints | None = None
    """As `Logged.cluster_N`, of requests."""
    weight_bound: float | None = None
    """The greatest weight that any action could have had at any one place."""
    reward_range: tuple[float, float] = (0.0, 1.0)
    """Least and greatest possible reward of one place."""

    def __len__(self) -> int:
        return len(self.reward_RS)

    @property
    def cluster_N(self) -> Ints | None:
        """The clusters of the units that are resampled."""
        return self.cluster_R

    @property
    def weight_RS(self) -> Floats:
        """Importance weights of the places."""
        return self.target_RS / self.propensity_RS

    @property
    def weight_N(self) -> Floats:
        """Importance weights of whole lists, `[R]`, places having been filled one after the other."""
        return self.weight_RS.prod(axis=1)

    def rows(self, which: slice | NDArray[np.bool_]) -> "Slates":
        """Some of the requests."""
        return Slates(
            reward_RS=self.reward_RS[which],
            propensity_RS=self.propensity_RS[which],
            target_RS=self.target_RS[which],
            cluster_R=None if self.cluster_R is None else self.cluster_R[which],
            weight_bound=self.weight_bound,
            reward_range=self.reward_range,
        )


class Terms(NamedTuple):
    """A row's part of an estimate."""

    value_N: Floats
    """Its numerator."""
    weight_N: Floats | None = None
    """Its denominator; None: 1, so that the estimate is a mean."""
    kept_N: Floats | None = None
    """The weight after clipping, where there is any; what its mean lacks to 1 bounds the bias."""
    bounds: tuple[float, float] | None = None
    """Between what any row's value must lie; None: the estimate is not the mean of values whose
    expectation is what is asked for."""


class Estimator(Protocol):
    """A file of this folder."""

    TAKES: type[Logged] | type[Slates]
    NEEDS_MODEL: bool
    ASSUMES: str
    Config: type[Settings]
    parameters: Callable[[Settings, Floats], tuple[float, ...]]
    terms: Callable[[Logged | Slates, float], Terms]


def load(name: str) -> Estimator:
    """The estimator of a name.

    Raises:
        InputError: there is no such file.
    """
    module: ModuleType = registry.load(PACKAGE, name, "estimators")
    return cast(Estimator, module)


def names(takes: type[Logged] | type[Slates]) -> list[str]:
    """The estimators of single actions, or those of lists."""
    return [name for name in registry.known(PACKAGE) if load(name).TAKES is takes]


def no_parameter(config: Settings, weight_N: Floats) -> tuple[float, ...]:
    """For estimators without a hyper-parameter."""
    return (np.inf,)


def levels(weight_N: Floats) -> tuple[float, ...]:
    """Weights at which to clip: quantiles of those that the log has, ascending, and inf, which clips nothing."""
    found = np.unique(np.quantile(weight_N[weight_N > 0], (0.5, 0.75, 0.9, 0.95, 0.99, 0.999)))
    return (*found.tolist(), np.inf)


def greatest_weight(log: Logged) -> float:
    """The weights' bound, where it is known, else the greatest one observed."""
    return float(log.weight_N.max()) if log.weight_bound is None else log.weight_bound


def corrected_bounds(log: Logged, greatest: float) -> tuple[float, float]:
    """Bounds of q̂(x, π) + w (r - q̂(x, a)) for 0 ≤ w ≤ `greatest` and predictions in the range of rewards."""
    low, high = log.reward_range
    return low - greatest * (high - low), high + greatest * (high - low)


def weighted_bounds(log: Logged, greatest: float) -> tuple[float, float]:
    """Bounds of w r for 0 ≤ w ≤ `greatest`."""
    low, high = log.reward_range
    return min(0.0, low * greatest), max(0.0, high * greatest)


def predictions(log: Logged) -> tuple[Floats, Floats]:
    """(q̂(x, a), q̂(x, π)); the caller has seen to it that they are there."""
    assert log.model_N is not None, "no reward model"
    assert log.model_target_N is not None, "no reward model"
    return log.model_N, log.model_target_N
