"""A service of the small run's bundle in this process, whatever its settings."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from features.online import StateStore
from recsys import inference
from serving.api import build
from serving.service import Config, Service
from serving.store import Config as StoreConfig
from serving.store import open_store
from serving.variants import Variants
from tests.conftest import FinishedRun

PATIENT = {"deadline_ms": 30_000, "wait_ms": 30_000}
"""Of the lane: other tests keep the cores busy."""


class Client(TestClient):
    """Asks a service, which tests may look into."""

    __test__ = False
    service: Service


@contextmanager
def serving(
    run: FinishedRun,
    directory: Path,
    store: StateStore | None = None,
    recommend: inference.Config | None = None,
    **settings: Any,
) -> Iterator[Client]:
    """A client of a service whose section [serve] has these settings."""
    config = Config.model_validate({"lane": PATIENT, "log": {"path": "requests.jsonl"}, **settings})
    opened = store or open_store(StoreConfig(durable=False), directory, 1000)
    variants = Variants.of_bundle(run.directory / "bundle" / "time", opened, recommend or inference.Config())
    variants.control.model.recommender.seed()
    service = Service(variants, opened, config, directory)
    try:
        with Client(build(service)) as client:
            client.service = service
            yield client
    finally:
        service.close()
        opened.close()


@pytest.fixture
def client(finished_run: FinishedRun, tmp_path: Path) -> Iterator[Client]:
    with serving(finished_run, tmp_path) as opened:
        yield opened
