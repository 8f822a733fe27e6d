from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from masc_core.bundle.registry import Registry
from server.errors import Problem
from server.openai.schemas import OpenAIAnswer, OpenAIErrorAnswer
from server.openapi import SAMPLES, problems
from server.schemas.generate import GenerateAnswer
from tests.server.service import Service
from tests.server.sse import read_events

PROBLEM = "application/problem+json"
OPENAI = "post /v1/images/generations"


@pytest.fixture(scope="module")
def document(service: Service) -> dict[str, Any]:
    response = service.get("/openapi.json")
    assert response.status_code == 200
    parsed: dict[str, Any] = response.json()
    return parsed


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def test_every_route_of_the_contract_is_described(document: dict[str, Any]) -> None:
    assert {name for name, _ in operations(document)} == {
        "post /generate",
        "post /jobs",
        "post /v1/images/generations",
        "get /jobs/{id}",
        "delete /jobs",
        "delete /jobs/{id}",
        "get /jobs/{id}/events",
        "get /jobs/{id}/images/{index}",
        "get /v1/models",
        "get /v1/models/{name}",
        "get /models",
        "get /models/{name}/classes",
        "get /models/{name}/classes/{class_id}/thumbnail",
        "get /models/{name}/codebook",
        "get /models/{name}/codebook/clusters",
        "get /models/{name}/codebook/clusters/{cluster}",
        "get /models/{name}/codebook/nodes/{node}",
        "get /models/{name}/codebook/patches",
        "post /admin/models/{name}/activate",
        "get /healthz",
        "get /readyz",
        "get /metrics",
        "get /status",
        "get /version",
    }
    assert all(operation["summary"] for _, operation in operations(document))
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(ids)) == len(ids)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert {"GenerateBody", "GenerateAnswer", "Problem"} <= names
    assert names <= set(schemas)
    assert not {"HTTPValidationError", "ValidationError"} & set(schemas)


def test_every_error_is_a_problem_with_an_example(document: dict[str, Any]) -> None:
    seen = set()
    for name, operation in operations(document):
        for status, response in operation["responses"].items():
            assert response["description"]
            if int(status) < 400 or " /v1/" in name:
                continue
            seen.add(status)
            content = response["content"][PROBLEM]
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
            assert content["examples"]
            for example in content["examples"].values():
                assert Problem.model_validate(example["value"]).status == int(status)
            headers = response.get("headers", {})
            assert ("Retry-After" in headers) == (status in {"429", "503"})
            assert ("WWW-Authenticate" in headers) == (status == "401")
    ours = {401, 403, 404, 408, 409, 410, 413, 415, 422, 429, 500, 503, 504}
    assert seen == {str(status) for status in ours}


def test_a_key_is_optional_where_it_may_be_wanted_and_unknown_elsewhere(
    document: dict[str, Any],
) -> None:
    schemes = document["components"]["securitySchemes"]
    assert (schemes["bearer"]["type"], schemes["bearer"]["scheme"]) == ("http", "bearer")
    assert (schemes["key"]["in"], schemes["key"]["name"]) == ("header", "X-API-Key")
    for name, operation in operations(document):
        if name.split()[1].startswith(("/generate", "/jobs", "/v1/images")):
            assert operation["security"] == [{"bearer": []}, {"key": []}, {}]
        elif " /admin/" in name:
            assert operation["security"] == [{"admin-bearer": []}, {"admin-key": []}]
        elif name in {"get /status", "get /readyz"}:
            assert operation["security"] == [{"admin-bearer": []}, {"admin-key": []}, {}]
        else:
            assert "security" not in operation


def test_errors_of_the_openai_api_have_its_form(document: dict[str, Any]) -> None:
    responses = dict(operations(document))[OPENAI]["responses"]
    assert {status for status in responses if int(status) >= 400} == {
        *("400", "401", "403", "404", "408", "409", "410", "413", "415", "429"),
        *("500", "503", "504"),
    }
    for status, response in responses.items():
        content = response["content"]["application/json"]
        if int(status) < 400:
            for example in content["examples"].values():
                OpenAIAnswer.model_validate(example["value"])
            continue
        assert content["schema"] == {"$ref": "#/components/schemas/OpenAIErrorAnswer"}
        assert content["examples"]
        for example in content["examples"].values():
            OpenAIErrorAnswer.model_validate(example["value"])
        assert ("Retry-After" in response.get("headers", {})) == (status in {"429", "503"})


@pytest.mark.parametrize("path", ["/generate", "/jobs/{id}/events", "/v1/images/generations"])
def test_every_event_has_its_schema(document: dict[str, Any], path: str) -> None:
    (operation,) = document["paths"][path].values()
    stream = operation["responses"]["200"]["content"]["text/event-stream"]
    assert set(stream["x-events"]) >= {"error"}
    assert read_events(stream["example"])


def test_no_parameter_is_null(document: dict[str, Any]) -> None:
    parameters = [
        parameter for _, one in operations(document) for parameter in one.get("parameters", ())
    ]
    assert {"X-Masc-Timeout", "Idempotency-Key", "Last-Event-ID"} <= {p["name"] for p in parameters}
    assert all("type" in parameter["schema"] for parameter in parameters)


def test_the_examples_of_requests_are_valid(service: Service, document: dict[str, Any]) -> None:
    body = document["paths"]["/generate"]["post"]["requestBody"]
    assert body["required"]
    content = body["content"]["application/json"]
    examples = [example["value"] for example in content["examples"].values()]
    examples += document["components"]["schemas"]["GenerateBody"]["examples"]
    shipped = Registry(Path(__file__).parents[2] / "models").manifest("cifar10")
    for example in examples:
        if "class_name" in example:
            assert example["class_name"] in shipped.class_names
    assert len(examples) >= 3
    for example in examples:
        assert service.generate(example).status_code == 200


def test_the_example_of_an_answer_is_valid(document: dict[str, Any]) -> None:
    content = document["paths"]["/generate"]["post"]["responses"]["200"]["content"]
    files = {"image/png", "image/jpeg", "image/webp"}
    assert set(content) == {"application/json", "text/event-stream", *files}
    (example,) = content["application/json"]["examples"].values()
    answer = GenerateAnswer.model_validate(example["value"])
    assert base64.b64decode(answer.images[0].b64).startswith(b"\x89PNG")


def test_a_real_answer_has_the_shape_of_the_example(
    service: Service, document: dict[str, Any]
) -> None:
    content = document["paths"]["/generate"]["post"]["responses"]["200"]["content"]
    (example,) = content["application/json"]["examples"].values()
    answer = service.generate().json()
    assert answer.keys() == example["value"].keys()
    assert answer["images"][0].keys() == example["value"]["images"][0].keys()
    assert answer["timings"].keys() == example["value"]["timings"].keys()


def test_samples_of_one_status_share_a_response() -> None:
    responses = problems("queue-full", "no-worker", "invalid")
    assert set(responses) == {503, 422}
    assert set(responses[503]["content"][PROBLEM]["examples"]) == {"queue-full", "no-worker"}


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_documents_of_their_status(name: str) -> None:
    assert SAMPLES[name].document()["status"] == SAMPLES[name].status


def test_it_is_built_once(own_service: Service) -> None:
    first = own_service.get("/openapi.json")
    own_service.app.openapi_schema = {"paths": {}}  # of which another one would be built
    assert own_service.get("/openapi.json").text == first.text
