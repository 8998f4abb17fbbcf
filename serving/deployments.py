"""The replica: one service and its HTTP application, in a process of its own."""

from pathlib import Path

from fastapi import FastAPI
from ray import serve

from recsys import inference
from serving.api import build
from serving.service import Service
from serving.store import Config as StoreConfig


@serve.deployment(
    health_check_period_s=5, health_check_timeout_s=30, graceful_shutdown_timeout_s=5, graceful_shutdown_wait_loop_s=0.1
)
@serve.ingress()
class Replica:
    """Answers HTTP with a bundle's feeds."""

    def __init__(self, bundle: str, recommend: inference.Config, store: StoreConfig, directory: str) -> None:
        self.service = Service(Path(bundle), recommend, store, Path(directory))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve after the constructor, so that the application has the service."""
        return build(self.service)
