"""Whose a job is, where the service has keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.auth.test_access import ALICE, BOB, write_keys
from tests.server.service import Service, assert_problem
from tests.server.sse import read_events

OPENAI = "/v1/images/generations"
OF_A_JOB = [("GET", ""), ("GET", "/events"), ("GET", "/images/0"), ("DELETE", "")]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path, **write_keys(tmp_path)) as service:
        yield service


def key(secret: str) -> dict[str, str]:
    return {"X-API-Key": secret}


@pytest.mark.parametrize(("method", "rest"), OF_A_JOB)
def test_a_job_is_its_owner_s_alone(guarded: Service, method: str, rest: str) -> None:
    submitted = guarded.submit(key(ALICE))
    location = submitted.headers["location"]
    told = guarded.get(f"{location}/events", **key(ALICE))
    assert read_events(told.text)[-1].name == "done"
    assert_problem(guarded.call(method, location + rest, headers=key(BOB)), 404, "id")
    assert_problem(guarded.call(method, location + rest), 401)
    assert guarded.call(method, location + rest, headers=key(ALICE)).status_code in {200, 204}


def test_an_idempotency_key_is_its_owner_s_alone(guarded: Service) -> None:
    answers = [
        guarded.submit(key(who) | {"Idempotency-Key": "order-7"}, class_id=class_id)
        for class_id, who in enumerate((ALICE, BOB))
    ]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert len({answer.headers["location"] for answer in answers}) == 2
    assert not any("idempotency-replayed" in answer.headers for answer in answers)


@pytest.mark.parametrize("path", ["/generate", "/jobs"])
def test_a_key_is_wanted_before_anything_else(guarded: Service, path: str) -> None:
    assert_problem(guarded.call("POST", path, content=b"{"), 401)


def test_a_client_of_openai_s_brings_its_key_in_its_own_way(guarded: Service) -> None:
    body = {"prompt": "ship"}
    refused = guarded.call("POST", OPENAI, json=body, headers={"Authorization": "Bearer no"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
    assert refused.headers["www-authenticate"] == "Bearer"
    taken = guarded.call("POST", OPENAI, json=body, headers={"Authorization": f"Bearer {ALICE}"})
    assert taken.status_code == 200


@pytest.mark.parametrize("path", ["/generate", "/jobs", OPENAI])
def test_a_rate_limit_is_for_all_that_starts_work(tmp_path: Path, path: str) -> None:
    body = {"prompt": "ship"} if path == OPENAI else {"class_id": 5}
    with Service(tmp_path, rate_limit=2) as service:
        answers = [service.call("POST", path, json=body) for _ in range(3)]
        assert [answer.status_code for answer in answers[:2]] == [
            202 if path == "/jobs" else 200
        ] * 2
        assert answers[2].status_code == 429
        assert int(answers[2].headers["retry-after"]) >= 1
        assert service.get("/jobs/x").status_code == 404
