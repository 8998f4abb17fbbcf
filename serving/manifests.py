"""Files for clusters: a config for `serve deploy`, and a manifest for KubeRay with the same config in it.

    recsys manifests configs/serve/cluster.toml --write DIR
    serve deploy DIR/serve.yaml -a http://HEAD:8265
    kubectl apply -f DIR/rayservice.yaml

`deployments` of the config say how many replicas there are: a changed number changes no replica that runs. `args` say
what replicas are told: where these change, Ray replaces the replicas one by one. New models need neither: replicas find
what `recsys deploy` writes into the run's directory.
"""

import copy
from pathlib import Path
from typing import Any

import yaml
from ray import __version__ as ray_version

from features.errors import InputError
from features.manifest import write_text
from recsys.config import RunConfig
from serving.app import APPLICATION, environment
from serving.config import Arguments, Config, Kubernetes
from serving.deployments import Replica, grpc_options, options

SERVE, RAYSERVICE = "serve.yaml", "rayservice.yaml"

PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
"""Of the head; `serve` and `grpc` are added as the config has them."""

_HEAD = """\
# Written by `recsys manifests`. Before `kubectl apply`:
# - every `image` is to be the one that you have built with this version of Feedline and Ray {ray};
# - the volume claim {claim} is to hold the run's directory as {run}, for all nodes; `recsys deploy` writes into it.
"""


def write(config: RunConfig, section: Config, directory: Path) -> dict[str, Any]:
    """Write both files.

    Returns:
        `files`: their paths.

    Raises:
        InputError: the store is of one host alone.
    """
    if section.store.kind == "lmdb":
        raise InputError(
            "serve.store.kind = 'lmdb' is for the processes of one host, and a cluster has several; set [serve.store] "
            "kind = 'redis' and url"
        )
    here = Arguments(run=str(config.directory.resolve()), serve=section)
    there = here.model_copy(update={"run": f"{section.kubernetes.mount}/{config.run.name}"})
    head = _HEAD.format(ray=ray_version, claim=section.kubernetes.claim, run=there.run)
    texts = {
        SERVE: "# Written by `recsys manifests`. Ray's processes need: "
        + " ".join(f"{name}={value}" for name, value in environment().items())
        + "\n"
        + _yaml(serve_config(here)),
        RAYSERVICE: head + _yaml(ray_service(config.run.name, there)),
    }
    for name, text in texts.items():
        write_text(directory / name, text)
    return {"files": [str(directory / name) for name in texts]}


def serve_config(told: Arguments) -> dict[str, Any]:
    """What `serve deploy` takes: `ray.serve.schema.ServeDeploySchema`."""
    section = told.serve
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": section.host, "port": section.port},
        **grpc_options(section),
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": "serving.deployments:application",
                "args": told.model_dump(mode="json"),
                "deployments": [{"name": Replica.name, **options(section)}],
            }
        ],
    }


def ray_service(name: str, told: Arguments) -> dict[str, Any]:
    """A `RayService` of `ray.io/v1`: a head that answers nobody, and workers with the replicas."""
    section, own = told.serve, told.serve.kubernetes
    scaled = section.autoscaling
    ports = {"serve": section.port} if section.grpc.port is None else {"serve": section.port, "grpc": section.grpc.port}
    head = _pod(own, {**PORTS, **ports}, cpus=own.head_cpus, memory=own.head_memory)
    worker = _pod(own, ports, cpus=own.worker_cpus, memory=own.worker_memory)
    # Ray's agent answers on every host; only hosts with a replica have a proxy that does.
    head["containers"][0]["readinessProbe"] = _probe("/api/local_raylet_healthz", 52365)
    worker["containers"][0]["readinessProbe"] = _probe("/-/healthz", section.port)
    worker["containers"][0]["lifecycle"] = {"preStop": {"exec": {"command": ["/bin/sh", "-c", "ray stop"]}}}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": f"{APPLICATION}-{name}".lower().replace("_", "-").replace(".", "-")},
        "spec": {
            "serveConfigV2": _yaml(serve_config(told)),
            "rayClusterConfig": {
                "rayVersion": ray_version,
                "enableInTreeAutoscaling": scaled is not None,
                "headGroupSpec": {
                    # No replicas on the head: it keeps the cluster together.
                    "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"},
                    "template": {"spec": head},
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "replicas",
                        "replicas": own.min_workers,
                        "minReplicas": own.min_workers,
                        "maxReplicas": own.max_workers,
                        "rayStartParams": {},
                        "template": {"spec": worker},
                    }
                ],
            },
        },
    }


def _pod(own: Kubernetes, ports: dict[str, int], *, cpus: int, memory: str) -> dict[str, Any]:
    resources = {"cpu": str(cpus), "memory": memory}
    container = {
        "name": "ray",
        "image": own.image,
        "env": [{"name": name, "value": value} for name, value in environment().items()],
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        "resources": {"requests": resources, "limits": copy.copy(resources)},
        "volumeMounts": [{"name": "runs", "mountPath": own.mount}],
    }
    claim = {"name": "runs", "persistentVolumeClaim": {"claimName": own.claim}}
    return {"containers": [container], "volumes": [claim]}


def _probe(path: str, port: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": port},
        "initialDelaySeconds": 10,
        "periodSeconds": 5,
        "timeoutSeconds": 5,
        "failureThreshold": 10,
    }


def _yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, width=120)
