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

from features import manifest
from features.errors import InputError
from recsys.config import RunConfig
from recsys.config_file import validate
from serving import rollout, verified
from serving.auth import Keys, require_keys
from serving.config import Arguments, Config
from serving.deploy import deploy
from serving.store import open_store

APPLICATION = "feedline"


def serve(config: RunConfig, path: Path) -> None:
    """Serve what is deployed of a run until SIGINT or SIGTERM; its bundle is deployed first where nothing is.

    Raises:
        InputError: what is deployed cannot be served, the store cannot be opened, or the port is taken.
    """
    section = check(config, path)
    folder = config.directory / section.deployments
    asked = rollout.read(folder)
    if asked is None:
        deploy(config, section, path)
        asked = rollout.read(folder)
        assert asked is not None
    else:
        _say_what_is_newer(config, asked.current.control, path)
    # Looked at once here, so that what is wrong is said here and not in a replica's log.
    for part in asked.current.parts:
        verified.require(folder / part.bundle)
    open_store(section.store, config.directory, asked.current.retain).close()
    require_keys(section.host, section.keys)
    if section.keys is not None:
        Keys(config.directory / section.keys)
    if section.address == "local":
        require_free(section.host, section.port)
        if section.grpc.port is not None:
            require_free(section.host, section.grpc.port, "grpc.port")
    os.environ.update(environment() | _own_ports())
    _until_signal(section, lambda: _start(section, arguments(config, section)))


def check(config: RunConfig, path: Path) -> Config:
    """The checked section [serve] of a run."""
    return validate(Config, config.serve, str(path), "serve.")


def arguments(config: RunConfig, section: Config) -> Arguments:
    """What a replica is told."""
    return Arguments(run=str(config.directory.resolve()), serve=section)


def _say_what_is_newer(config: RunConfig, control: rollout.Part, path: Path) -> None:
    """Say where the run has another bundle than is served, or its config another [recommend]."""
    exported = manifest.read(config.directory / "bundle" / config.served_split)
    newer = exported is not None and exported["fingerprint"] != control.bundle
    if newer or config.recommend != control.recommend:
        what = "another bundle" if newer else "another [recommend]"
        print(f"{path} has {what} than is deployed; `recsys deploy {path}` puts it into service", file=sys.stderr)


def require_free(host: str, port: int, field: str = "port") -> None:
    """Refuse a port that is taken, which HAProxy would only say after a long start."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"serve.{field} = {port} on {host} cannot be used ({error.strerror}); stop what listens there or set "
                f"--serve.{field}"
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


def environment() -> dict[str, str]:
    """Settings that Ray reads when it is imported, on every host."""
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # Of gRPC, in bytes, where the default is 2 GB; `serve.limits.body_kb` says how long a request may be.
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(16 * 2**20),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _own_ports() -> dict[str, str]:
    """Ports that are fixed by default, which would let only one server run on a host."""
    names = ("HAPROXY_METRICS_PORT", "HAPROXY_STATS_PORT", "FALLBACK_PROXY_HTTP_PORT", "FALLBACK_PROXY_GRPC_PORT")
    return {f"RAY_SERVE_{name}": str(free_port()) for name in names}


def _start(section: Config, told: Arguments) -> None:
    import ray
    from ray import serve as ray_serve

    from serving.deployments import Replica, grpc_options, options

    fewest = section.replicas if section.autoscaling is None else section.autoscaling.min_replicas
    cores = ray.cluster_resources().get("CPU", 0.0)
    if fewest * section.cpus > cores:
        raise InputError(
            f"{fewest} replicas × serve.cpus = {section.cpus} is more than the {cores:g} cores there are; lower "
            "serve.cpus or the number of replicas"
        )
    quiet: dict[str, Any] = {"log_level": "ERROR", "enable_access_log": False}
    ray_serve.start(
        http_options={"host": section.host, "port": section.port}, logging_config=quiet, **grpc_options(section)
    )
    ray_serve.run(Replica.options(**options(section)).bind(told), name=APPLICATION, logging_config=quiet)
    calls = "" if section.grpc.port is None else f"gRPC on {section.host}:{section.grpc.port}; "
    print(
        f"serving on http://{section.host}:{section.port}: a feed to look at; /ops has figures, /docs the API; {calls}"
        "Ctrl-C stops it",
        file=sys.stderr,
        flush=True,
    )


def _until_signal(section: Config, start: Callable[[], None]) -> None:
    """Start Ray, or join a cluster's, and `start`; wait for a signal, stop what was started.

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
                if section.address == "local":  # a cluster may serve others
                    ray_serve.shutdown()
                ray.shutdown()

    handle_signals()
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            print("starting Ray and loading the model, up to a minute …", file=sys.stderr, flush=True)
            own: dict[str, Any] = {"include_dashboard": False} if section.address == "local" else {}
            thread.submit(
                ray.init, address=section.address, log_to_driver=False, logging_level=logging.ERROR, **own
            ).result()
            handle_signals()
            if not stop.is_set():
                thread.submit(start).result()
            stop.wait()
            print("stopping …", file=sys.stderr, flush=True)
        finally:
            thread.submit(shut_down).result()
