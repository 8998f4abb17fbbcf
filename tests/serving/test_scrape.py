"""Figures of several replicas in one answer; the index of drift where its value is known."""

from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from features.manifest import read_json
from recsys import smoke
from serving.drift import expecting
from serving.metrics import Metrics, Shared
from tests.conftest import FinishedRun
from tests.serving.conftest import serving


def test_one_replica_answers_for_those_beside_it(tmp_path: Path) -> None:
    first, second = Metrics(), Metrics()
    asked, beside = Shared(first, tmp_path), Shared(second, tmp_path)
    beside.replica, beside._file = "host-other", tmp_path / "host-other.json"
    first.events.labels(outcome="applied").inc(2)
    second.events.labels(outcome="applied").inc(3)
    second.seconds.labels(endpoint="/v1/recommend").observe(0.004)
    beside.write()
    families = {family.name: family for family in text_string_to_metric_families(asked.exposition())}
    applied = {sample.labels["replica"]: sample.value for sample in families["feedline_events"].samples}
    assert applied == {asked.replica: 2.0, "host-other": 3.0}
    assert families["feedline_request_seconds"].type == "histogram"
    beside.close()
    assert "host-other" not in asked.exposition()
    asked.close()
    assert list(tmp_path.iterdir()) == []


def test_the_index_of_drift() -> None:
    shown = expecting([0.0, 0.25, 0.5, 0.75, 1.0], [0.0, 1.0, 2.0, 3.0, 4.0])
    assert shown.edges.tolist() == [1, 2, 3]
    assert shown.expected.tolist() == [0.25] * 4
    shown.found, shown.count = np.array([25.0, 25, 25, 25]), 100.0
    assert shown.psi == pytest.approx(0.0)
    shown.found = np.array([40.0, 30, 20, 10])
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    assert shown.psi == pytest.approx(((shares - 0.25) * np.log(shares / 0.25)).sum())
    ties = expecting([0.0, 0.25, 0.5, 0.75, 1.0], [0.0, 1.0, 1.0, 1.0, 4.0])
    assert (ties.edges.tolist(), ties.expected.tolist()) == ([1.0], [0.75, 0.25])


def test_scores_that_are_the_bundles_own_have_not_drifted(finished_run: FinishedRun, tmp_path: Path) -> None:
    with serving(finished_run, tmp_path) as client:
        bundle = client.service.variants.control.model.bundle
        recorded = read_json(bundle.directory / smoke.FILE)
        for answer in recorded["answers"]:
            asked = {"user_id": answer["user_id"], "exclude_seen": answer["exclude_seen"]}
            client.post("/v1/recommend", json={**asked, "k": smoke.RECORDED, "timestamp": recorded["asked_at"]})
        [own] = client.service.drift.indices().values()
        assert own < 0.01, "the same people, asked the same"
        client.service.drift.add("moved", bundle, [1e6] * 100)
        assert client.service.drift.indices()["moved"] > 1
        assert "feedline_score_psi{" in client.get("/metrics").text
