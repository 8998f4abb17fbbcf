"""Intervals around an estimate: by resampling, and by an inequality that holds for any number of rows.

The bootstrap draws independent units (people, requests) with replacement; it is right as their number grows, and too
narrow while an estimate hangs on a few heavy weights that the log has not met yet. Empirical Bernstein is right for any
number of independent units whose values have known bounds, whatever their distribution; it is therefore wider, much
wider where the bounds are.

Shapes: M units, K estimates, B replicates.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_BLOCK = 1 << 21
"""Draws that are held at a time."""


def bootstrap(
    value_MK: Floats, weight_MK: Floats, *, level: float, replicates: int, seed: int
) -> tuple[Floats, Floats]:
    """Percentile intervals of the ratios Σ value / Σ weight, all of the same resamples of the units.

    A unit comes into a resample as often as a Poisson(1) draw says, which for ratios is as drawing M of them with
    replacement (Hanley & MacGibbon 2006; Chamandy et al. 2012, https://research.google/pubs/pub43157).

    Args:
        value_MK: sums of the units' numerators.
        weight_MK: sums of their denominators.
        level: coverage, as 0.95.
        replicates: B.
        seed: of the draws.

    Returns:
        Lower and upper ends, each `[K]`.
    """
    units, kinds = value_MK.shape
    both = np.ascontiguousarray(np.concatenate([value_MK, weight_MK], axis=1))
    rng = np.random.default_rng(seed)
    ratio_BK = np.empty((replicates, kinds))
    step = max(_BLOCK // units, 1)
    for begin in range(0, replicates, step):
        count = min(step, replicates - begin)
        total = rng.poisson(1.0, (count, units)).astype(np.float64) @ both
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio_BK[begin : begin + count] = total[:, :kinds] / total[:, kinds:]
    tail = (1 - level) / 2
    # A resample in which no weight is left says nothing.
    low_K, high_K = np.nanquantile(ratio_BK, (tail, 1 - tail), axis=0)
    return low_K, high_K


def standard_errors(value_MK: Floats, weight_MK: Floats) -> Floats:
    """Standard errors of the ratios Σ value / Σ weight over independent units, `[K]`: the delta method."""
    total_K = weight_MK.sum(axis=0)
    residual_MK = value_MK - weight_MK * (value_MK.sum(axis=0) / total_K)
    units = len(value_MK)
    return np.sqrt(units / (units - 1) * (residual_MK**2).sum(axis=0)) / total_K


def bernstein(*, mean: float, variance: float, count: int, width: float, level: float) -> tuple[float, float]:
    """Empirical Bernstein: Maurer & Pontil, COLT 2009, theorem 4, https://arxiv.org/abs/0907.3740, once for each side.

    With probability `level` the expectation of `count` independent values in an interval of length `width` lies within

        sqrt(2 V ln(4 / δ) / n) + 7 width ln(4 / δ) / (3 (n - 1)),      δ = 1 - level

    of their mean, V being their sample variance (divided by n - 1).
    """
    log = np.log(4 / (1 - level))
    reach = float(np.sqrt(2 * variance * log / count) + 7 * width * log / (3 * (count - 1)))
    return mean - reach, mean + reach
