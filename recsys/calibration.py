"""Probabilities that come true as often as they say: Platt scaling (Platt, 1999) of every task that is yes or no.

A line is laid through the log-odds, fitted on the validation part. It changes no order.

E examples, T tasks.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from features import manifest
from features.schema import Schema

FILE = "calibration.json"

TRUST = 10.0
"""Examples' worth of trust in the probabilities as they are, so that few examples change little."""


@dataclass(frozen=True)
class Calibration:
    """What is done to the ranker's outputs before they are read."""

    scale_T: Tensor
    shift_T: Tensor
    """float32 each."""

    @classmethod
    def none(cls, schema: Schema) -> Self:
        """Nothing."""
        return cls(torch.ones(len(schema.outcomes)), torch.zeros(len(schema.outcomes)))

    @classmethod
    def fitted(cls, logits_ET: np.ndarray, outcome_ET: np.ndarray, schema: Schema) -> Self:
        """Of the least log-loss; NaN where an outcome is not known. Tasks that are numbers are left alone."""
        found = [
            _line(logits_ET[:, task], outcome_ET[:, task]) if binary else (1.0, 0.0)
            for task, binary in enumerate(schema.binary)
        ]
        scale, shift = torch.tensor(found, dtype=torch.float32).unbind(1)
        return cls(scale, shift)

    def __call__(self, logits_BT: Tensor) -> Tensor:
        """float32 [B, T]."""
        return logits_BT.float() * self.scale_T + self.shift_T

    def save(self, folder: Path, schema: Schema) -> None:
        """Beside the ranker that it is of."""
        lines = zip(schema.outcomes, self.scale_T.tolist(), self.shift_T.tolist(), strict=True)
        manifest.write_json(folder / FILE, {name: {"scale": scale, "shift": shift} for name, scale, shift in lines})

    @classmethod
    def load(cls, folder: Path, schema: Schema) -> Self:
        """Of a ranker's folder; nothing where there is none."""
        if not (folder / FILE).exists():
            return cls.none(schema)
        found = manifest.read_json(folder / FILE)
        scale, shift = (torch.tensor([found[name][key] for name in schema.outcomes]) for key in ("scale", "shift"))
        return cls(scale, shift)


def _line(logit_E: np.ndarray, outcome_E: np.ndarray) -> tuple[float, float]:
    known_E = ~np.isnan(outcome_E)
    z, y = logit_E[known_E].astype(np.float64), outcome_E[known_E].astype(np.float64)
    if not len(y):
        return 1.0, 0.0

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        scale, shift = line
        odds = scale * z + shift
        error = expit(odds) - y
        away = np.array([scale - 1, shift])
        value = float(np.sum(np.logaddexp(0, odds) - y * odds)) + TRUST / 2 * float(away @ away)
        return value, np.array([error @ z, error.sum()]) + TRUST * away

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(1e-3, None), (None, None)])
    return float(found.x[0]), float(found.x[1])
