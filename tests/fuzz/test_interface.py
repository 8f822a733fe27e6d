"""Thousands of requests that our own description of the interface allows, or nearly allows.

Whatever is sent, the answer comes in time, is described, and is never a fault of ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import integers, none, one_of
from schemathesis import Case
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    response_schema_conformance,
    status_code_conformance,
)

from tests.server.listening import listening
from tests.server.pictured_model import write_pictured
from tests.server.service import Service

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NUM_CASES = 8750  # 625 of each operation that takes something
NUM_PLAIN = 5  # of operations that take nothing
SECONDS = 10.0  # in which every answer comes


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("service")
    write_pictured(root / "models")
    with Service(root, max_queue=100_000) as service, listening(service) as port:
        yield f"http://127.0.0.1:{port}"


def test_no_request_of_thousands_is_a_fault_of_ours(url: str) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    found = list(schema.get_all_operations())
    operations = [one.ok() for one in found if isinstance(one, Ok)]
    assert len(operations) == len(found)
    assert len(operations) >= 14
    statuses: Counter[int] = Counter()
    varied = [one for one in operations if one.body or one.path_parameters]
    for operation in operations:
        num = -(-NUM_CASES // len(varied)) if operation in varied else NUM_PLAIN
        check_cases(operation, url, num, statuses)
    assert statuses.total() >= NUM_CASES
    assert min(statuses[200], statuses[202], statuses[404], statuses[422]) > 50


def check_cases(
    operation: APIOperation[Any, Any, Any, Any], url: str, num: int, statuses: Counter[int]
) -> None:
    """Send so many cases of one operation, allowed ones and others."""
    modes = [operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode]

    @given(case=one_of(modes), class_id=none() | integers(0, 2))
    @settings(
        max_examples=num,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Case[Any], class_id: int | None) -> None:
        if class_id is not None:
            name_what_is_there(case, class_id)
        response = case.call(base_url=url, timeout=SECONDS)
        statuses[response.status_code] += 1
        is_hurried = "X-Masc-Timeout" in (case.headers or {})
        assert response.status_code < 500 or (is_hurried and response.status_code == 504)
        case.validate_response(response, checks=[status_code_conformance])
        if "event-stream" not in response.headers["content-type"][0]:
            case.validate_response(response, checks=[response_schema_conformance])

    check()


def name_what_is_there(case: Case[Any], class_id: int) -> None:
    """Let a request be for a class and a model that exist, as chance hardly ever has it."""
    if "name" in (case.path_parameters or {}):
        case.path_parameters["name"] = "tiny"
    if isinstance(case.body, dict):
        for name in ("class_name", "model"):
            case.body.pop(name, None)
        if "prompt" in case.body:
            case.body |= {"prompt": str(class_id), "size": "auto"}
        else:
            case.body["class_id"] = class_id
