"""What estimates are made of: sums over independent units, gathered in one pass over a log of any length.

The log is read in chunks; float64 sums are all that is kept. A unit is a cluster of rows, or many clusters put together
at random where there are more than `units`: their sums are as independent as the clusters', and a bootstrap of some
thousands of them is as good as one of millions. Time grows with rows × estimators, memory hardly at all.

Shapes: N rows, C clusters, M units, K pairs of an estimator and a value of its hyper-parameter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from features.errors import InputError
from recsys.replay import intervals
from recsys.replay.estimators._contract import Estimator, Floats, Ints, Logged, Slates


@dataclass(frozen=True, kw_only=True)
class Sums:
    """What is left of a log."""

    value_MK: Floats
    """Numerators."""
    weight_MK: Floats
    """Denominators."""
    kept_K: Floats
    """Mean weight after clipping; 1 where nothing is clipped."""
    bounds_K: Sequence[tuple[float, float] | None]
    """Between what a row's value lies."""
    rows: int
    clusters: int
    largest: int
    """Rows of the largest cluster."""
    ratio_K: Floats
    """The estimates."""
    error_K: Floats
    """Their standard errors."""

    def difference(self, a: int, b: int) -> tuple[float, float]:
        """Estimate a less estimate b, and the standard error of that."""
        if a == b:
            return 0.0, 0.0
        value_M1 = self.value_MK[:, [a]] - self.value_MK[:, [b]]
        error = intervals.standard_errors(value_M1, self.weight_MK[:, [a]])
        return float(self.ratio_K[a] - self.ratio_K[b]), float(error[0])

    def bernstein(self, k: int, possible: tuple[float, float], level: float) -> tuple[float, float] | None:
        """The empirical Bernstein interval of a mean, cut to what is possible; None: the estimate is biased.

        A cluster's value is its sum over the mean size of clusters, which is taken for known.
        """
        bounds = self.bounds_K[k]
        if bounds is None:
            return None
        size = self.rows / self.clusters
        units = len(self.value_MK)
        low, high = intervals.bernstein(
            mean=float(self.ratio_K[k]),
            # Of units that are put together, each is the sum of so many independent clusters.
            variance=float(self.value_MK[:, k].var(ddof=1)) * units / self.clusters / size**2,
            count=self.clusters,
            width=(bounds[1] - bounds[0]) * self.largest / size,
            level=level,
        )
        return max(low, possible[0]), min(high, possible[1])


def sums_over(
    log: Logged | Slates, pairs: Sequence[tuple[Estimator, float]], *, units: int, seed: int, chunk: int
) -> Sums:
    """One pass over the log for all pairs.

    Args:
        log: rows or lists.
        pairs: estimators and hyper-parameters.
        units: M, at most.
        seed: of what is put together.
        chunk: rows held at a time.

    Raises:
        InputError: there is only one cluster.
    """
    rows, cluster_N = len(log), log.cluster_N
    clusters, largest = rows, 1
    if cluster_N is not None and rows:
        size_C = np.bincount(cluster_N)
        clusters, largest = len(size_C), int(size_C.max())
    if clusters < 2:
        raise InputError(
            f"{clusters} cluster of {rows} rows is too few for an interval; give rows that are independent"
        )
    count = min(clusters, units)
    unit_C: Ints = np.arange(clusters)
    if count < clusters:
        unit_C = np.random.default_rng((seed, 1)).permutation(clusters) % count

    if log.weight_bound is None:
        log = replace(log, weight_bound=_greatest(log, chunk))
    value_KM, weight_KM = np.zeros((len(pairs), count)), np.zeros((len(pairs), count))
    kept_K = np.zeros(len(pairs))
    bounds_K: list[tuple[float, float] | None] = [None] * len(pairs)
    for begin in range(0, rows, chunk):
        which = slice(begin, min(begin + chunk, rows))
        part = log.rows(which)
        unit_N = unit_C[which] if cluster_N is None else unit_C[cluster_N[which]]
        size_M = np.bincount(unit_N, minlength=count)
        for k, (estimator, value) in enumerate(pairs):
            found = estimator.terms(part, value)
            value_KM[k] += np.bincount(unit_N, found.value_N, count)
            weight_KM[k] += size_M if found.weight_N is None else np.bincount(unit_N, found.weight_N, count)
            kept_K[k] += len(unit_N) if found.kept_N is None else found.kept_N.sum()
            bounds_K[k] = found.bounds
    value_MK, weight_MK = value_KM.T, weight_KM.T
    return Sums(
        value_MK=value_MK,
        weight_MK=weight_MK,
        kept_K=kept_K / rows,
        bounds_K=bounds_K,
        rows=rows,
        clusters=clusters,
        largest=largest,
        ratio_K=value_MK.sum(axis=0) / weight_MK.sum(axis=0),
        error_K=intervals.standard_errors(value_MK, weight_MK),
    )


def _greatest(log: Logged | Slates, chunk: int) -> float:
    """The greatest weight of a row or a place."""
    parts = (log.rows(slice(begin, begin + chunk)) for begin in range(0, len(log), chunk))
    return max(float((part.weight_RS if isinstance(part, Slates) else part.weight_N).max()) for part in parts)
