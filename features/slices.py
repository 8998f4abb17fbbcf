"""Slices of flat arrays: how jagged data are moved without a loop."""

import numpy as np


def gather_slices(values: np.ndarray, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The slices `values[start:end]` end to end, and their offsets (int64 [B + 1]), gathered without a loop."""
    length = end - start
    offsets = np.zeros(len(length) + 1, dtype=np.int64)
    np.cumsum(length, out=offsets[1:])
    return values[np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], length)], offsets
