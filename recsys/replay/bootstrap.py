"""Intervals and comparisons by resampling people, the same people for every policy (Efron; paired by user).

Events of one person are not independent, people are: a resample draws people with replacement and takes all their
events. A mean is the sum over the people drawn over the number of their events. U people, C columns, R resamples.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

LEVEL = 0.95
BLOCK = 20_000_000
"""Weights that are drawn at a time."""


@dataclass(frozen=True)
class ByUser:
    """Sums of some columns over the events of each person, and how many events had a value."""

    sums_UC: np.ndarray
    counts_UC: np.ndarray

    @classmethod
    def of(cls, values_EC: np.ndarray, user_E: np.ndarray, users: int) -> "ByUser":
        """Add up by person; NaN is no value."""
        values_EC = values_EC.reshape(len(user_E), -1)
        known = ~np.isnan(values_EC)
        columns = range(values_EC.shape[1])
        filled = np.where(known, values_EC, 0.0)
        sums = [np.bincount(user_E, filled[:, column], minlength=users) for column in columns]
        counts = [np.bincount(user_E, known[:, column], minlength=users) for column in columns]
        return cls(np.stack(sums, axis=1), np.stack(counts, axis=1))

    @property
    def means_C(self) -> np.ndarray:
        """The mean over all events; NaN without any."""
        return _ratio(self.sums_UC.sum(0), self.counts_UC.sum(0))

    def resampled(self, resamples: int, seed: int) -> np.ndarray:
        """The same of each resample; float64 [R, C]. The same seed draws the same people."""
        found = [
            _ratio(weights @ self.sums_UC, weights @ self.counts_UC)
            for weights in _weights(len(self.sums_UC), resamples, seed)
        ]
        return np.concatenate(found)


@dataclass(frozen=True)
class Difference:
    """Of two policies, for some columns."""

    mean_C: np.ndarray
    low_C: np.ndarray
    high_C: np.ndarray
    p_C: np.ndarray
    """Two-sided, by how many standard deviations of the resamples the mean is off 0, which are nearly normal."""


def paired(by_user_a: ByUser, by_user_b: ByUser, *, resamples: int = 4000, seed: int = 0) -> Difference:
    """The first less the second, with intervals of `LEVEL`: percentiles of resamples of the same people."""
    drawn = by_user_a.resampled(resamples, seed) - by_user_b.resampled(resamples, seed)
    return compared(by_user_a.means_C - by_user_b.means_C, drawn)


def compared(mean_C: np.ndarray, drawn_RC: np.ndarray) -> Difference:
    """A difference, from the same of every resample."""
    low, high = interval(drawn_RC)
    spread = np.nanstd(drawn_RC, axis=0)
    off = np.divide(np.abs(mean_C), spread, out=np.where(mean_C == 0, 0.0, np.inf), where=spread > 0)
    p = 2 * norm.sf(off)
    return Difference(mean_C, low, high, p)


def interval(drawn_RC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Between which `LEVEL` of the resamples lie, of those that have a value; NaN where fewer than half have."""
    known_RC = np.isfinite(drawn_RC)
    some = known_RC.mean(0) > 0.5
    filled = np.where(some, drawn_RC, 0.0)
    low, high = (np.quantile if known_RC[:, some].all() else np.nanquantile)(
        filled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0
    )
    return np.where(some, low, np.nan), np.where(some, high, np.nan)


def holm(p: np.ndarray) -> np.ndarray:
    """p-values corrected for how many there are, so that the chance of any false one stays what it says (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def _weights(users: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each person is drawn in each resample, some resamples at a time; float64 [R', U]."""
    rng = np.random.default_rng(seed)
    chance = np.full(users, 1.0 / users)
    size = max(1, BLOCK // users)
    for first in range(0, resamples, size):
        yield rng.multinomial(users, chance, size=min(size, resamples - first)).astype(np.float64)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
