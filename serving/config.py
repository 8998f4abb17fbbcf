"""The section [serve] of a run: where the server listens, how many replicas answer, and what they share."""

from typing import Self

from pydantic import Field, model_validator

from features.settings import Settings
from serving import service
from serving.store import Config as StoreConfig


class Autoscaling(Settings):
    """The section [serve.autoscaling]: as many replicas as requests ask for."""

    min_replicas: int = Field(default=1, ge=1)
    """The fewest."""
    max_replicas: int = Field(ge=1)
    """The most."""
    target_ongoing_requests: float = Field(default=4, gt=0)
    """Requests under way at a replica that are right; with more on average there will be more replicas."""
    upscale_delay_s: float = Field(default=10, ge=0)
    """How long there must be more before there are more replicas, s."""
    downscale_delay_s: float = Field(default=300, ge=0)
    """How long there must be less before there are fewer, s."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas = {self.min_replicas} is more than max_replicas = {self.max_replicas}; swap them"
            )
        return self


class Kubernetes(Settings):
    """The section [serve.kubernetes]: what a KubeRay manifest says of pods."""

    image: str = "registry.example/feedline:set-serve.kubernetes.image"
    """Image with this version of Feedline and of Ray."""
    claim: str = "feedline-runs"
    """Volume claim that holds the run's directory, mounted by all pods; one that many may read and write."""
    mount: str = Field(default="/feedline", pattern=r"^/.*[^/]$")
    """Where it is mounted."""
    min_workers: int = Field(default=1, ge=1)
    """The fewest pods with replicas."""
    max_workers: int = Field(default=1, ge=1)
    """The most."""
    worker_cpus: int = Field(default=4, ge=1)
    """Cores of such a pod."""
    worker_memory: str = "8Gi"
    """Its memory."""
    head_cpus: int = Field(default=2, ge=1)
    """Cores of the pod that keeps the cluster together."""
    head_memory: str = "4Gi"
    """Its memory."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_workers > self.max_workers:
            raise ValueError(
                f"min_workers = {self.min_workers} is more than max_workers = {self.max_workers}; swap them"
            )
        return self


class Grpc(Settings):
    """The section [serve.grpc]: the calls of `serving/feed.proto`, beside HTTP."""

    port: int | None = Field(default=None, ge=1, le=65535)
    """Port to listen on, at `serve.host`; None: no gRPC."""


class Config(service.Config):
    """The section [serve]."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all. Plain HTTP: put TLS in front."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""
    address: str = "local"
    """`local`: a Ray of its own on this host. Else that of a cluster, as `auto` or `host:6379`, whose hosts see the run
    under the same path."""
    replicas: int = Field(default=1, ge=1)
    """Processes that answer."""
    autoscaling: Autoscaling | None = None
    """As many processes as requests ask for, in place of `replicas`."""
    cpus: float = Field(default=0.5, gt=0)
    """Cores that Ray reserves for a replica."""
    max_ongoing_requests: int = Field(default=1000, ge=1)
    """Requests at a replica before the ingress refuses further ones: far more than the lane lets wait, so that the lane
    is who says no, at once."""
    deployments: str = "served"
    """Directory of what was deployed, relative to the run."""
    keep: int = Field(default=3, ge=1)
    """Deployments that are remembered with their bundles: the present one, and those to which a rollback leads."""
    watch_s: float = Field(default=1.0, gt=0)
    """How often a replica looks whether something else is asked for, s."""
    store: StoreConfig = StoreConfig()
    """Histories and counters."""
    grpc: Grpc = Grpc()
    """Feeds over gRPC."""
    kubernetes: Kubernetes = Kubernetes()
    """What a KubeRay manifest says of pods."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.grpc.port == self.port:
            raise ValueError(f"grpc.port = {self.port} is the port of HTTP too; take another")
        scaled = self.autoscaling
        if scaled is not None and scaled.target_ongoing_requests > self.max_ongoing_requests:
            raise ValueError(
                f"autoscaling.target_ongoing_requests = {scaled.target_ongoing_requests:g} is more than "
                f"max_ongoing_requests = {self.max_ongoing_requests}, which no replica reaches; lower it"
            )
        return self


class Arguments(Settings):
    """What a replica is told, by `recsys serve` and by a Serve config file."""

    run: str
    """Directory of the run, the same on every host: what was deployed, and an embedded store, are in it."""
    serve: Config = Config()
    """Its section [serve]."""
