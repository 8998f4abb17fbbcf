"""Files for clusters: Ray accepts the one as it is, and the other has what KubeRay needs."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.config import gRPCOptions
from ray.serve.schema import ServeDeploySchema

from features.errors import InputError
from recsys import config as configs
from recsys.config_file import read_toml
from serving import manifests
from serving.app import check
from serving.config import Arguments
from serving.grpc_server import register

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "configs" / "serve" / "cluster.toml"


@pytest.fixture
def written(tmp_path: Path) -> dict[str, Any]:
    config = configs.load(CLUSTER, ["--serve.replicas", "3"])
    found = manifests.write(config, check(config, CLUSTER), tmp_path)
    return {Path(path).name: yaml.safe_load(Path(path).read_text()) for path in found["files"]}


def test_ray_accepts_the_config_and_the_replica_what_it_is_told(written: dict[str, Any]) -> None:
    config = ServeDeploySchema.model_validate(written["serve.yaml"])
    application = config.applications[0]
    assert (config.http_options.host, config.http_options.port) == ("0.0.0.0", 8000)
    deployment = application.deployments[0]
    assert deployment.name == "Replica"
    assert deployment.num_replicas == "auto" or deployment.autoscaling_config
    told = Arguments.model_validate(application.args)
    assert told.serve.store.url == "redis://redis:6379/0"
    assert told.run == str((Path("runs") / "ml-100k").resolve())


def test_kuberay_finds_what_it_needs(written: dict[str, Any]) -> None:
    service = written["rayservice.yaml"]
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    inner = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    cluster = service["spec"]["rayClusterConfig"]
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    ports = {port["name"]: port["containerPort"] for port in head["template"]["spec"]["containers"][0]["ports"]}
    assert ports == {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": 8000}
    for group in (head, workers):
        container = group["template"]["spec"]["containers"][0]
        assert container["readinessProbe"]["httpGet"]
        assert {"name": "RAY_SERVE_ENABLE_HA_PROXY", "value": "1"} in container["env"]
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        assert volumes == set(mounted)
        assert Path(inner.applications[0].args["run"]).is_relative_to(mounted["runs"])


def test_calls_have_their_port_in_both_files(tmp_path: Path) -> None:
    config = configs.load(CLUSTER, ["--serve.grpc.port", "9000"])
    found = manifests.write(config, check(config, CLUSTER), tmp_path)["files"]
    alone, service = (yaml.safe_load(Path(path).read_text()) for path in found)
    inner = yaml.safe_load(service["spec"]["serveConfigV2"])
    for written in (alone, inner):
        options = ServeDeploySchema.model_validate(written).grpc_options
        assert options.port == 9000
        assert gRPCOptions.model_validate(options.model_dump()).grpc_servicer_func_callable == [register]
    worker = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert {"name": "grpc", "containerPort": 9000} in worker["ports"]
    with pytest.raises(InputError, match=r"grpc\.port = 8000 is the port of HTTP too; take another"):
        check(configs.load(CLUSTER, ["--serve.grpc.port", "8000"]), CLUSTER)


def test_a_store_of_one_host_is_refused(tmp_path: Path) -> None:
    config = configs.load(CLUSTER, ["--serve.store.kind", "lmdb"])
    with pytest.raises(InputError, match=r"serve\.store\.kind = 'lmdb' is for the processes of one host"):
        manifests.write(config, check(config, CLUSTER), tmp_path)


def test_a_file_that_names_a_run_is_that_run_served_otherwise(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        '[run]\nname = "a"\n[serve]\nport = 1\nstore = { path = "x", durable = false }\n'
    )
    file = tmp_path / "serve.toml"
    file.write_text('[serve]\nrun = "run.toml"\nreplicas = 2\nstore = { path = "y" }\n')
    expected = {"port": 7, "replicas": 2, "store": {"path": "y", "durable": False}}
    assert read_toml(file, ["--serve.port", "7"]) == {"run": {"name": "a"}, "serve": expected}
    file.write_text('[serve]\nrun = "run.toml"\n[run]\nname = "b"\n')
    with pytest.raises(InputError, match=r"serve\.run names a run, which run would be of too; take run out"):
        read_toml(file, [])
