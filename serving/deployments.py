"""The replica: one service and its HTTP application, in a process of its own; the application of a Serve config."""

import logging
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.grpc_util import RayServegRPCContext

from features.counters import milliseconds
from features.errors import InputError
from serving import feed_pb2, rollout
from serving.api import build
from serving.config import Arguments, Config
from serving.deployed import Deployed
from serving.expiry import Expiry
from serving.grpc_feed import Feed
from serving.service import Service
from serving.store import open_store


@serve.deployment(
    health_check_period_s=5, health_check_timeout_s=30, graceful_shutdown_timeout_s=5, graceful_shutdown_wait_loop_s=0.1
)
@serve.ingress()
class Replica:
    """Answers HTTP with the feeds of what is deployed."""

    def __init__(self, told: Arguments) -> None:
        """Open the store and what is deployed, and follow what will be."""
        logging.getLogger("feedline").setLevel(logging.INFO)
        directory, section = Path(told.run), told.serve
        folder = directory / section.deployments
        asked = rollout.read(folder)
        if asked is None:
            raise InputError(f"{folder}: nothing is deployed here; run `recsys deploy` first")
        store = open_store(section.store, directory, asked.current.retain)
        variants = Deployed(folder, store)
        variants.watch(section.watch_s)
        # Where the replicas of a host leave their metrics for each other.
        figures = directory / "metrics" / str(section.port)
        self.service = Service(variants, store, section, directory, figures)
        self.expiry = Expiry(store, milliseconds(section.store.expire_every) / 1000)
        self.feed = Feed(self.service)
        self.service.metrics.read(
            "deployment", "Number of the deployment served, and asked for.", "which", variants.numbers
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve after the constructor, so that the application has the service."""
        return build(self.service)

    async def Recommend(
        self, said: feed_pb2.RecommendRequest, grpc_context: RayServegRPCContext
    ) -> feed_pb2.RecommendResponse:
        """As `feed.proto` names it; Ray finds a call by its name, and by that of the second parameter."""
        return await self.feed.recommend(said, grpc_context)

    async def Rank(self, said: feed_pb2.RankRequest, grpc_context: RayServegRPCContext) -> feed_pb2.RankResponse:
        """As `feed.proto` names it."""
        return await self.feed.rank(said, grpc_context)


def options(section: Config) -> dict[str, Any]:
    """How Ray runs replicas, in the words of a Serve config."""
    found: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": section.cpus},
        "max_ongoing_requests": section.max_ongoing_requests,
    }
    if section.autoscaling is None:
        return found | {"num_replicas": section.replicas}
    return found | {"autoscaling_config": section.autoscaling.model_dump()}


def grpc_options(section: Config) -> dict[str, Any]:
    """Where Ray listens for calls, in the words of a Serve config; nothing where it does not."""
    if section.grpc.port is None:
        return {}
    return {"grpc_options": {"port": section.grpc.port, "grpc_servicer_functions": ["serving.grpc_server.register"]}}


def application(told: Arguments) -> Application:
    """What `import_path` of a Serve config names; how many replicas, the config's `deployments` say."""
    return Replica.bind(told)
