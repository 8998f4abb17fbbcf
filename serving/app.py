"""The Ray Serve application: replicas of the service behind Ray's HAProxy ingress, until a signal.

recsys serve configs/quickstart/ml-100k.toml --serve.port 8000
"""

import logging
import os
import random
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from pydantic import Field

from features.errors import InputError
from recsys import bundle as bundles
from recsys.config import RunConfig
from recsys.config_file import validate
from serving import service
from serving.auth import Keys, require_keys
from serving.store import Config as StoreConfig
from serving.store import open_store

APPLICATION = "feedline"


class Config(service.Config):
    """The section [serve]."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all. Plain HTTP: put TLS in front."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""
    replicas: int = Field(default=1, ge=1)
    """Processes that answer."""
    cpus: float = Field(default=0.5, gt=0)
    """Cores that Ray reserves for a replica."""
    max_ongoing_requests: int = Field(default=1000, ge=1)
    """Requests at a replica before the ingress refuses further ones: far more than the lane lets wait, so that the lane
    is who says no, at once."""
    store: StoreConfig = StoreConfig()
    """Histories and counters."""


def serve(config: RunConfig, path: Path) -> None:
    """Serve the run's bundle until SIGINT or SIGTERM.

    Raises:
        InputError: there is no bundle, the store cannot be opened, or the port is taken.
    """
    section = check(config, path)
    bundle = config.directory / "bundle" / config.served_split
    loaded = bundles.load(bundle)
    _require_schema(config, path, loaded)
    # Opened once here, so that what is wrong with it is said here and not in a replica's log.
    open_store(section.store, config.directory, loaded.config["prepare"]["retain"]).close()
    require_keys(section.host, section.keys)
    if section.keys is not None:
        Keys(config.directory / section.keys)
    require_free(section.host, section.port)
    os.environ.update(_environment())
    directory = config.directory.resolve()
    requests = service.Config.model_validate({name: getattr(section, name) for name in service.Config.model_fields})
    figures = str(directory / "metrics" / str(section.port))
    arguments = (str(bundle.resolve()), config.recommend, section.store, requests, str(directory), figures)
    _until_signal(lambda: _start(section, arguments))


def check(config: RunConfig, path: Path) -> Config:
    """The checked section [serve] of a run."""
    return validate(Config, config.serve, str(path), "serve.")


def _require_schema(config: RunConfig, path: Path, bundle: bundles.Bundle) -> None:
    """Refuse a bundle that was made for other features than the config declares."""
    schema = bundle.encoder.schema
    fitted = {spec.name: {"rows": spec.rows, "width": spec.width} for spec in schema.features}
    declared = tuple(spec.model_copy(update=fitted.get(spec.name, {})) for spec in config.features)
    own = schema.model_copy(update={"features": declared, "label": config.label})
    own.require_equal(schema, str(path), str(bundle.directory))


def require_free(host: str, port: int) -> None:
    """Refuse a port that is taken, which HAProxy would only say after a long start."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"serve.port = {port} on {host} cannot be used ({error.strerror}); stop what listens there or set "
                "--serve.port"
            ) from None


def free_port() -> int:
    """A port of the loopback that nobody listens on, drawn by chance.

    It is none of those that systems give to connections, and that Ray gives to its workers: one of Ray's many would
    take it before its server does.
    """
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise InputError(f"no port from {_PORTS.start} to {_PORTS.stop - 1} is free on this host")


_PORTS = range(20_000, 32_768)
"""Above Ray's workers, below the ephemeral ports of Linux."""


def _environment() -> dict[str, str]:
    """Settings that Ray reads when it is imported."""
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # Fixed by default, which would let only one server run on a host.
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _start(section: Config, arguments: tuple[Any, ...]) -> None:
    import ray
    from ray import serve as ray_serve

    from serving.deployments import Replica

    cores = ray.cluster_resources().get("CPU", 0.0)
    if section.replicas * section.cpus > cores:
        raise InputError(
            f"serve.replicas = {section.replicas} × serve.cpus = {section.cpus} is more than the {cores:g} cores there "
            "are; lower one"
        )
    quiet: dict[str, Any] = {"log_level": "ERROR", "enable_access_log": False}
    ray_serve.start(http_options={"host": section.host, "port": section.port}, logging_config=quiet)
    deployment = Replica.options(
        num_replicas=section.replicas,
        ray_actor_options={"num_cpus": section.cpus},
        max_ongoing_requests=section.max_ongoing_requests,
    )
    ray_serve.run(deployment.bind(*arguments), name=APPLICATION, logging_config=quiet)
    print(
        f"serving on http://{section.host}:{section.port} (docs at /docs); Ctrl-C stops it", file=sys.stderr, flush=True
    )


def _until_signal(start: Callable[[], None]) -> None:
    """Start Ray and `start`, wait for a signal, stop both.

    Ray's processes live as long as the thread that began them, and its start replaces the handler of SIGTERM: hence
    one thread for all of it, and handlers set twice.
    """
    import ray
    from ray import serve as ray_serve

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    stop = threading.Event()

    def handle_signals() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())

    def shut_down() -> None:
        # Ray prints the end of its own controller to stdout, which is for results.
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            if ray.is_initialized():
                ray_serve.delete(APPLICATION)  # lets requests under way end
                ray_serve.shutdown()
                ray.shutdown()

    handle_signals()
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            print("starting Ray and loading the model, up to a minute …", file=sys.stderr, flush=True)
            thread.submit(
                ray.init, address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
            ).result()
            handle_signals()
            if not stop.is_set():
                thread.submit(start).result()
            stop.wait()
            print("stopping …", file=sys.stderr, flush=True)
        finally:
            thread.submit(shut_down).result()
