"""How well one ranking of policies foretells another: Spearman's and Kendall's rank correlation, with intervals.

P policies, N rounds, U people, D draws of the bootstrap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

LEVEL = 0.95


@dataclass(frozen=True)
class Evidence:
    """What one seed has shown of all policies."""

    gain_UP: np.ndarray
    """float64: what each person of the held-out log adds to a policy's offline metric."""
    weight_U: np.ndarray
    """float64: and to its denominator."""
    online_NP: np.ndarray
    """float64: a policy's value in each round."""


def spearman(a_DP: np.ndarray, b_DP: np.ndarray) -> np.ndarray:
    """Correlation of ranks, ties at their mean; 0 where all of one side are equal; float64 [D]."""
    a_DP, b_DP = (rankdata(values_DP, axis=1) for values_DP in (a_DP, b_DP))
    a_DP, b_DP = a_DP - a_DP.mean(1, keepdims=True), b_DP - b_DP.mean(1, keepdims=True)
    return _ratio((a_DP * b_DP).sum(1), np.sqrt((a_DP**2).sum(1) * (b_DP**2).sum(1)))


def kendall(a_DP: np.ndarray, b_DP: np.ndarray) -> np.ndarray:
    """Tau-b: pairs in the same order less pairs in the other; 0 where all of one side are equal; float64 [D]."""
    a_DPP, b_DPP = (np.sign(values[:, :, None] - values[:, None, :]) for values in (a_DP, b_DP))
    pairs_D = np.sqrt((a_DPP**2).sum((1, 2)) * (b_DPP**2).sum((1, 2)))
    return _ratio((a_DPP * b_DPP).sum((1, 2)), pairs_D)


def regret(offline_DP: np.ndarray, online_DP: np.ndarray) -> np.ndarray:
    """Share of the best online value that is lost by who takes the best policy offline; float64 [D]."""
    best_D = online_DP.max(1)
    taken_D = online_DP[np.arange(len(online_DP)), offline_DP.argmax(1)]
    return _ratio(best_D - taken_D, best_D)


def agreement(evidence: Sequence[Evidence], draws: int, seed: int) -> dict[str, Any]:
    """How the order of policies offline agrees with that online, over all seeds.

    A draw of the bootstrap takes seeds, in each of them rounds, and people of the held-out log, with replacement: the
    interval says how the correlation might have come out in other worlds, on other days, with other people.

    Args:
        evidence: of each seed; the same policies in the same order.
        draws: of the bootstrap.
        seed: of its draws.

    Returns:
        `spearman`, `kendall` and `regret`, each with `value`, `low` and `high`.
    """
    offline_P, online_P = values(evidence)
    rng = np.random.default_rng(seed)
    drawn = [values(_drawn(evidence, rng)) for _ in range(draws)]
    offline_DP, online_DP = (np.array(column) for column in zip(*drawn, strict=True))
    found: dict[str, Any] = {}
    for name, measure in {"spearman": spearman, "kendall": kendall, "regret": regret}.items():
        spread_D = measure(offline_DP, online_DP)
        found[name] = {"value": float(measure(offline_P[None], online_P[None])[0]), **interval(spread_D)}
    return found


def values(evidence: Sequence[Evidence]) -> tuple[np.ndarray, np.ndarray]:
    """Offline metric and online value of each policy, the mean over seeds; float64 [P] each."""
    offline = [_ratio(one.gain_UP.sum(0), one.weight_U.sum()) for one in evidence]
    return np.mean(offline, axis=0), np.mean([one.online_NP.mean(0) for one in evidence], axis=0)


def interval(spread_D: np.ndarray) -> dict[str, float]:
    """`low` and `high`, between which are 95 % of what was drawn."""
    low, high = np.quantile(spread_D, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"low": float(low), "high": float(high)}


def _drawn(evidence: Sequence[Evidence], rng: np.random.Generator) -> list[Evidence]:
    drawn: list[Evidence] = []
    for one in (evidence[place] for place in rng.integers(len(evidence), size=len(evidence))):
        users, rounds = len(one.weight_U), len(one.online_NP)
        times_U = np.bincount(rng.integers(users, size=users), minlength=users).astype(np.float64)
        online_NP = one.online_NP[rng.integers(rounds, size=rounds)]
        drawn.append(Evidence(one.gain_UP * times_U[:, None], one.weight_U * times_U, online_NP))
    return drawn


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Quotients; 0 where there is nothing below."""
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), np.asarray(below, np.float64))
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
