"""Whether a log can answer for a policy at all: bad rows, support, and how few rows the weights leave.

Rows that cannot be (a propensity that is missing, 0 or above 1) are set aside and counted; past a share of the log it
is refused, for then something is wrong with the log and not with a few of its rows. A log without support for the
target is refused always: weights average to the target's mass on what the log could do, so that a mean that is surely
not 1 says that the log knows nothing of the rest, or that its propensities are not those of its actions.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from pydantic import Field

from features.errors import InputError
from features.settings import Settings
from recsys.replay.estimators._contract import Floats, Logged

QUANTILES = (0.5, 0.9, 0.99, 0.999)
"""Of the weights, in the diagnostics."""

SURE = 4.0
"""Standard errors past which a mean weight is surely not 1."""


class Config(Settings):
    """What a log may be like."""

    max_quarantined: float = Field(default=0.01, ge=0, lt=1)
    """Greatest share of rows with impossible probabilities or rewards; past it the log is refused."""
    max_unsupported: float = Field(default=0.01, ge=0, lt=1)
    """Greatest probability of the target on actions that the log could not take; past it the log is refused."""
    min_effective: float = Field(default=50, ge=0)
    """Effective rows below which estimates come with a warning."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How the target's actions lie in the log's."""

    rows: int
    effective_rows: float
    """(Σ w)² / Σ w²: as many rows of the target's own log are as sure (Kish 1965)."""
    mean_weight: float
    """1 up to chance, where there is support."""
    mean_weight_error: float
    """Its standard error, over clusters."""
    max_weight: float
    weight_bound: float | None
    """The greatest weight that was possible; None: not known."""
    weight_quantiles: dict[str, float]
    unsupported: float | None
    """The target's mean probability of actions that the log could not take; None: known by the mean weight alone."""

    def as_json(self) -> dict[str, Any]:
        """For the run's results."""
        return asdict(self)


def admit(log: Logged, config: Config, source: str) -> tuple[Logged, dict[str, int]]:
    """The log without its impossible rows, and how many of each kind those were.

    Raises:
        InputError: they are more than `config.max_quarantined` of the log, or no row is left.
    """
    low, high = log.reward_range
    propensity, target, reward = log.propensity_N, log.target_N, log.reward_N
    rules = {
        "propensity: not a number": np.isnan(propensity),
        "propensity: 0 or less": propensity <= 0,
        "propensity: above 1": propensity > 1,
        "target probability: not a number": np.isnan(target),
        "target probability: outside [0, 1]": (target < 0) | (target > 1),
        "reward: not a number": np.isnan(reward),
        f"reward: outside [{low:g}, {high:g}]": (reward < low) | (reward > high),
    }
    bad = np.zeros(len(log), dtype=bool)
    counts: dict[str, int] = {}
    for reason, found in rules.items():
        fresh = found & ~bad
        if fresh.any():
            counts[reason] = int(fresh.sum())
            bad |= fresh
    share = bad.sum() / max(len(log), 1)
    if share > config.max_quarantined or bad.all():
        said = ", ".join(f"{reason} in {count}" for reason, count in counts.items()) or "no rows"
        raise InputError(
            f"{source}: {bad.sum()} of {len(log)} rows are impossible ({said}); mend the log, or raise "
            f"replay.overlap.max_quarantined = {config.max_quarantined:g}"
        )
    if not bad.any():
        return log, counts
    kept = log.rows(~bad)
    if kept.cluster_N is not None:
        kept = replace(kept, cluster_N=np.unique(kept.cluster_N, return_inverse=True)[1])
    return kept, counts


def overlap(log: Logged) -> Overlap:
    """The diagnostics of a log that is admitted."""
    weight_N = log.weight_N
    total, square = float(weight_N.sum()), float((weight_N**2).sum())
    mean = total / len(log)
    quantiles = np.quantile(weight_N, QUANTILES)
    return Overlap(
        rows=len(log),
        effective_rows=total**2 / square if square else 0.0,
        mean_weight=mean,
        mean_weight_error=_mean_error(weight_N, mean, log),
        max_weight=float(weight_N.max()),
        weight_bound=log.weight_bound,
        weight_quantiles={f"{q:g}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
        unsupported=None if log.unsupported_N is None else float(log.unsupported_N.mean()),
    )


def require_support(found: Overlap, config: Config, source: str) -> None:
    """Let through only logs that could have taken what the target takes.

    Raises:
        InputError: the target's probability of other actions, or the distance of the mean weight to 1, is too great.
    """
    if found.unsupported is not None and found.unsupported > config.max_unsupported:
        raise InputError(
            f"{source}: the target gives {found.unsupported:.1%} of its probability to actions that the log "
            "never could take, and no reward of theirs was ever seen; evaluate a policy that stays within "
            "the log's, or log one that explores"
        )
    if not found.max_weight:
        raise InputError(f"{source}: the target takes none of the logged actions; check that both name actions alike")
    away = found.mean_weight - 1
    if abs(away) > max(SURE * found.mean_weight_error, config.max_unsupported):
        why = (
            "the target takes actions that the log hardly could, or propensities are not those of the logged actions"
            if away < 0
            else "the propensities are too small for how often their actions were logged"
        )
        raise InputError(
            f"{source}: the weights average {found.mean_weight:.3f} ± {found.mean_weight_error:.3f}, and 1 is needed: "
            f"{why}; mend the propensities or log a policy that explores"
        )


def warnings(found: Overlap, config: Config) -> list[str]:
    """What a reader must know before believing an estimate."""
    said: list[str] = []
    if found.effective_rows < config.min_effective:
        said.append(
            f"The {found.rows:,} rows are worth {found.effective_rows:.0f}: almost all weight lies on a few of them, "
            "and intervals of weighted estimates are too narrow."
        )
    share = found.max_weight / (found.mean_weight * found.rows)
    if share > 0.05:
        said.append(f"One row alone carries {share:.0%} of all weight.")
    if abs(found.mean_weight - 1) > 2 * found.mean_weight_error:
        said.append(
            f"Weights average {found.mean_weight:.3f} ± {found.mean_weight_error:.3f}, which is some way from 1: the "
            "log met the target's rarest actions too seldom, or too often."
        )
    return said


def _mean_error(weight_N: Floats, mean: float, log: Logged) -> float:
    """Standard error of the mean weight over clusters."""
    if log.cluster_N is None:
        return float(weight_N.std() / np.sqrt(len(log)))
    residual_C = np.bincount(log.cluster_N, weight_N - mean)
    return float(np.sqrt((residual_C**2).sum()) / len(log))
