"""The replica: one service and its HTTP application, in a process of its own."""

from pathlib import Path

from fastapi import FastAPI
from ray import serve

from recsys import bundle as bundles
from recsys import inference
from serving.api import build
from serving.service import Config, Service
from serving.store import Config as StoreConfig
from serving.store import open_store
from serving.variants import Variants


@serve.deployment(
    health_check_period_s=5, health_check_timeout_s=30, graceful_shutdown_timeout_s=5, graceful_shutdown_wait_loop_s=0.1
)
@serve.ingress()
class Replica:
    """Answers HTTP with a bundle's feeds."""

    def __init__(
        self,
        bundle: str,
        recommend: inference.Config,
        store: StoreConfig,
        requests: Config,
        directory: str,
        figures: str,
    ) -> None:
        """Open the store and the bundle; an empty store is filled from the bundle's snapshot.

        Args:
            bundle: directory of the bundle.
            recommend: how it recommends.
            store: kind and place of the store.
            requests: keys, limits, the lane, logs.
            directory: of the run, where an embedded store is.
            figures: where the replicas of a host leave their metrics for each other.
        """
        # Which histories are kept how long is the bundle's.
        retain = bundles.load(Path(bundle)).config["prepare"]["retain"]
        opened = open_store(store, Path(directory), retain)
        variants = Variants.of_bundle(Path(bundle), opened, recommend)
        variants.control.model.recommender.seed()
        self.service = Service(variants, opened, requests, Path(directory), Path(figures))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve after the constructor, so that the application has the service."""
        return build(self.service)
