"""Metrics of a training: known answers, and a lifetime that goes on after a restart."""

from pathlib import Path

import pytest
import torch

from recsys import distributed
from recsys.metrics import pointwise_metrics
from recsys.monitor import RecentMetrics

BATCH = 512


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    probability = torch.rand(count, BATCH, generator=generator) * 0.8 + 0.1
    label = (torch.rand(count, BATCH, generator=generator) < probability).float()
    return [(p, y, torch.ones(BATCH)) for p, y in zip(probability, label, strict=True)]


def fed(parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], state: dict[str, torch.Tensor] | None = None):
    metrics = RecentMetrics("like", BATCH, torch.device("cpu"))
    if state is not None:
        metrics.module.load_state_dict(state)
    for part in parts:
        metrics.add(*part)
    return metrics


def test_they_are_the_exact_ones_and_go_on_where_they_were_saved(tmp_path: Path):
    with distributed.process_group(0, 1, f"file://{tmp_path / 'rendezvous'}"):
        parts = batches(6)
        found = fed(parts).compute()
        probability, label = (torch.cat(column).numpy() for column in list(zip(*parts, strict=True))[:2])
        exact = pointwise_metrics(probability, label, label)
        for name in ("ne", "auc", "calibration"):
            assert found[f"window_{name}"] == pytest.approx(exact[name], rel=1e-4)
        first = fed(parts[:4])
        first.flush()
        resumed = fed(parts[4:], dict(first.module.state_dict())).compute()
        for name in ("lifetime_ne", "lifetime_calibration"):
            assert resumed[name] == pytest.approx(found[name], rel=1e-12)
