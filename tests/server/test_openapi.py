from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from masc_core.registry import Registry
from server.openapi import SAMPLES, problems
from server.schemas import GenerateAnswer, Problem
from tests.server.service import Service

PROBLEM = "application/problem+json"


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
        "get /models",
        "get /models/{name}/classes",
        "get /healthz",
        "get /readyz",
        "get /metrics",
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
    for _, operation in operations(document):
        for status, response in operation["responses"].items():
            assert response["description"]
            if status == "200":
                continue
            seen.add(status)
            content = response["content"][PROBLEM]
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
            assert content["examples"]
            for example in content["examples"].values():
                assert Problem.model_validate(example["value"]).status == int(status)
            assert ("Retry-After" in response.get("headers", {})) == (status == "503")
    assert seen == {"404", "408", "413", "415", "422", "500", "503", "504"}


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
    assert set(content) == {"application/json", "image/png", "image/jpeg", "image/webp"}
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
