from pathlib import Path

import numpy as np
import pytest
import torch

from features.labels import FittedTask
from features.schema import Schema
from recsys.calibration import Calibration

SCHEMA = Schema(
    features=(),
    label="click",
    tasks=(FittedTask(name="follow", source="f", at_least=1), FittedTask(name="dwell", source="d")),
    items=1,
    users=1,
)


def outcomes(rng: np.random.Generator, logit_E: np.ndarray) -> np.ndarray:
    return (rng.random(len(logit_E)) < 1 / (1 + np.exp(-logit_E))).astype(np.float32)


def test_a_line_that_was_bent_is_laid_straight():
    rng = np.random.default_rng(0)
    truth_E2 = rng.normal(size=(50_000, 2)) * 1.5
    # Ranker and truth differ by a line of each task's own; half of the second task's outcomes are not known.
    happened_E2 = np.stack([outcomes(rng, truth_E2[:, 0]), outcomes(rng, truth_E2[:, 1])], axis=1)
    happened_E2[::2, 1] = np.nan
    logits_ET = np.stack([truth_E2[:, 0] / 0.5 - 1, (truth_E2[:, 1] + 2) / 1.5, truth_E2[:, 0]], axis=1)
    outcome_ET = np.concatenate([happened_E2, truth_E2[:, :1]], axis=1)
    found = Calibration.fitted(logits_ET, outcome_ET, SCHEMA)
    torch.testing.assert_close(found.scale_T, torch.tensor([0.5, 1.5, 1.0]), rtol=0.05, atol=0)
    torch.testing.assert_close(found.shift_T, torch.tensor([0.5, -2.0, 0.0]), rtol=0.05, atol=0.01)
    probability_E = torch.sigmoid(found(torch.from_numpy(logits_ET)))[:, 0].numpy()
    assert probability_E.mean() == pytest.approx(happened_E2[:, 0].mean(), abs=1e-3)


def test_few_examples_of_one_kind_change_little_and_nothing_changes_without_any():
    logits_ET = np.zeros((3, 3), dtype=np.float32)
    outcome_ET = np.array([[1, np.nan, 0]] * 3)
    found = Calibration.fitted(logits_ET, outcome_ET, SCHEMA)
    assert 0 < found.shift_T[0] < 0.2
    assert found.shift_T[1:].tolist() == [0, 0]
    assert found.scale_T.tolist() == [1, 1, 1]


def test_it_comes_back_as_it_was_saved(tmp_path: Path):
    saved = Calibration(torch.tensor([0.5, 1.25, 1.0]), torch.tensor([0.1, -2.0, 0.0]))
    saved.save(tmp_path, SCHEMA)
    found = Calibration.load(tmp_path, SCHEMA)
    torch.testing.assert_close(found.scale_T, saved.scale_T)
    torch.testing.assert_close(found.shift_T, saved.shift_T)
    (tmp_path / "calibration.json").unlink()
    assert Calibration.load(tmp_path, SCHEMA).scale_T.tolist() == [1, 1, 1]
