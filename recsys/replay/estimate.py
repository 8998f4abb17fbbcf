"""All estimators over a log in one pass, with intervals, and hyper-parameters chosen from the log itself.

    found = estimate(log, {"ips": {}, "dr": {}}, Config())

Hyper-parameters that a config leaves open are chosen by a bound of the squared error; what that costs in bias stands
beside the estimate. Its interval spans that of the same estimator unclipped too: clipping may make an estimate better,
but nobody knows its bias any better than the unclipped estimate is known.

Shapes: N rows, M units, K pairs of an estimator and a value of its hyper-parameter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from features.errors import InputError
from features.settings import Settings
from recsys.config_file import validate
from recsys.replay import intervals
from recsys.replay.estimators import _contract
from recsys.replay.estimators._contract import Estimator, Logged, Slates
from recsys.replay.sums import Sums, sums_over


class Config(Settings):
    """How intervals are made."""

    level: float = Field(default=0.95, gt=0, lt=1)
    """Coverage that intervals aim at."""
    replicates: int = Field(default=2_000, ge=100)
    """Resamples of the bootstrap."""
    units: int = Field(default=8_192, ge=100)
    """Most units that are resampled; of more clusters, as many at random are put together as it takes."""
    seed: int = Field(default=0, ge=0)
    """Of resamples and of what is put together."""
    chunk: int = Field(default=1 << 17, gt=0)
    """Rows held at a time."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a policy is worth by one estimator."""

    value: float
    low: float
    """Lower end of the bootstrap interval; with a hyper-parameter, of that of the unclipped estimate if it is lower."""
    high: float
    error: float
    """Standard error, over clusters."""
    bernstein: tuple[float, float] | None
    """Empirical Bernstein interval, within the range of rewards; None: the estimate is biased."""
    parameter: float | None
    """Its hyper-parameter; None: it has none."""
    bias: float
    """Estimated bias that the hyper-parameter costs: this estimate less the one that clips nothing."""
    bias_error: float
    """Standard error of that difference."""
    bias_bound: float
    """The greatest bias that it can have: the weight that was cut, times the range of rewards."""


def estimate(
    log: Logged | Slates, wanted: Mapping[str, Mapping[str, Any]], config: Config, source: str = "the log"
) -> dict[str, Estimate]:
    """What the target policy is worth, by every estimator wanted.

    Args:
        log: rows or lists that `admission.admit` has let through.
        wanted: for each estimator its fields, {} for its defaults.
        config: intervals.
        source: the log's name, for messages.

    Raises:
        InputError: an estimator is unknown, is one of the other kind of log, or wants a reward model that is not there.
    """
    asked: list[tuple[str, Estimator, tuple[float, ...]]] = []
    weight_N = log.weight_N
    for name, fields in wanted.items():
        estimator = _contract.load(name)
        if not isinstance(log, estimator.TAKES):
            raise InputError(f"{source}: estimator '{name}' takes {estimator.TAKES.__name__}; leave it out")
        if estimator.NEEDS_MODEL and isinstance(log, Logged) and log.model_N is None:
            raise InputError(f"{source}: estimator '{name}' needs a reward model; give context columns or leave it out")
        checked = validate(estimator.Config, dict(fields), source, f"replay.estimators.{name}.")
        asked.append((name, estimator, estimator.parameters(checked, weight_N)))
    del weight_N
    pairs = [(estimator, value) for _, estimator, values in asked for value in values]
    sums = sums_over(log, pairs, units=config.units, seed=config.seed, chunk=config.chunk)

    chosen: list[int] = []
    unclipped: list[int] = []
    begin = 0
    for _, _, values in asked:
        end = begin + len(values)
        # Two values are the one that is set and the one that clips nothing, to compare it with.
        best = least_error(sums, range(begin, end)) if len(values) > 2 else begin
        chosen.append(best)
        unclipped.append(end - 1)
        begin = end
    both = [*chosen, *unclipped]
    low_K, high_K = intervals.bootstrap(
        sums.value_MK[:, both],
        sums.weight_MK[:, both],
        level=config.level,
        replicates=config.replicates,
        seed=config.seed,
    )
    low_K, high_K = low_K.reshape(2, -1).min(axis=0), high_K.reshape(2, -1).max(axis=0)
    low, high = log.reward_range
    places = log.reward_RS.shape[1] if isinstance(log, Slates) else 1
    found: dict[str, Estimate] = {}
    for (name, _, values), best, whole, start, end in zip(asked, chosen, unclipped, low_K, high_K, strict=True):
        bias, bias_error = sums.difference(best, whole)
        found[name] = Estimate(
            value=float(sums.ratio_K[best]),
            low=float(start),
            high=float(end),
            error=float(sums.error_K[best]),
            bernstein=sums.bernstein(best, (places * low, places * high), config.level),
            parameter=pairs[best][1] if len(values) > 1 else None,
            bias=bias,
            bias_error=bias_error,
            bias_bound=max(0.0, 1 - float(sums.kept_K[best])) * places * (high - low) if best != whole else 0.0,
        )
    return found


def least_error(sums: Sums, among: range) -> int:
    """Which of several estimates has the least bound of its squared error; the last of them is unbiased.

    The bound is error² + (|bias| + error of the bias)², the bias being the distance to the unbiased estimate: the rule
    of Wang et al., ICML 2017, https://arxiv.org/abs/1612.01205, and Su et al., ICML 2020,
    https://arxiv.org/abs/1907.09623, with one standard error for the upper end of the bias.
    """
    bias = np.array([sums.difference(k, among[-1]) for k in among])
    bound = sums.error_K[among] ** 2 + (np.abs(bias[:, 0]) + bias[:, 1]) ** 2
    # Of equal bounds the least biased: parameters ascend.
    return among[len(bound) - 1 - int(np.argmin(bound[::-1]))]
