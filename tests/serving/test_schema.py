"""Whatever the OpenAPI document allows, and much that it does not, gets an answer that the document describes."""

from pathlib import Path

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from tests.conftest import FinishedRun
from tests.serving.conftest import Client, serving

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]
OFTEN = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_no_request_breaks_the_service(finished_run: FinishedRun, tmp_path: Path) -> None:
    asked = 0
    with serving(finished_run, tmp_path, events={"log": "events", "impressions": True}, demo=True) as client:
        document = schemathesis.openapi.from_asgi("/openapi.json", client.app)
        for found in document.get_all_operations():
            operation = found.ok()
            described = client.get("/openapi.json").json()["paths"][operation.path][operation.method]
            takes = described.get("parameters") or described.get("requestBody")
            # Where nothing is sent nothing wrong can be.
            for mode in GenerationMode if takes else [GenerationMode.POSITIVE]:

                @OFTEN
                @given(case=operation.as_strategy(generation_mode=mode))
                def check(case: schemathesis.Case) -> None:
                    nonlocal asked
                    asked += 1
                    case.call_and_validate(checks=CHECKS)

                check()
    assert asked > 150


def test_the_document_has_every_endpoint_with_its_refusals_and_an_example(client: Client) -> None:
    document = client.get("/openapi.json").json()
    promised = {
        "/v1/recommend": "post",
        "/v1/rank": "post",
        "/v1/similar": "post",
        "/v1/events": "post",
        "/v1/users/{user_id}/history": "get",
        "/v1/users/{user_id}/taste": "put",
        "/v1/users/{user_id}": "delete",
        "/v1/users": "get",
        "/v1/items": "get",
        "/v1/model": "get",
        "/v1/admin/reload": "post",
        "/healthz": "get",
        "/readyz": "get",
        "/metrics": "get",
    }
    for path, method in promised.items():
        described = document["paths"][path][method]
        assert {"401", "403", "413", "422", "429", "503"} <= described["responses"].keys(), path
        refusal = described["responses"]["503"]["content"]["application/json"]["schema"]["$ref"]
        assert refusal.endswith("/Problem")
        if "requestBody" in described:
            body = described["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            assert document["components"]["schemas"][body]["examples"], body
