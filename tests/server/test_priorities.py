"""Priorities of requests, within what a key may ask, and the end of all of a key's jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.auth.api_keys import hash_key
from tests.server.asgi import wait_until
from tests.server.service import Service, assert_problem

OPENAI = "/v1/images/generations"
KEYS = {"alice": "", "bob": 'priority = "batch"', "carol": "weight = 3"}


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Service]:
    path = tmp_path / "keys.toml"
    entries = (
        f'[[keys]]\nname = "{name}"\nsha256 = "{hash_key(name)}"\n{more}\n'
        for name, more in KEYS.items()
    )
    path.write_text("".join(entries))
    path.chmod(0o600)
    with Service(tmp_path, api_keys_file=path) as service:
        yield service


def key(name: str) -> dict[str, str]:
    return {"X-API-Key": name}


def body_of(path: str, **fields: Any) -> Mapping[str, Any]:
    return fields | ({"prompt": "ship"} if path == OPENAI else {"class_id": 0})


async def order(
    service: Service, requests: list[tuple[str, str, dict[str, Any]]]
) -> tuple[list[int], list[httpx.Response]]:
    """Seeds of requests, from 1 on, as a worker gets them that is busy until all are there."""
    service.painter.gate.clear()
    async with service.client() as client:

        async def post(path: str, who: str, fields: dict[str, Any]) -> httpx.Response:
            return await client.post(path, json=body_of(path, **fields), headers=key(who))

        await post("/jobs", "alice", {"seed": 0})
        await asyncio.to_thread(wait_until, lambda: bool(service.painter.requests))
        calls = []
        for seed, (path, who, fields) in enumerate(requests, start=1):
            calls.append(asyncio.create_task(post(path, who, {"seed": seed, **fields})))
            async with asyncio.timeout(5.0):
                while (await service.queue.stats()).depth < seed:  # noqa: ASYNC110 - until it waits
                    await asyncio.sleep(0.001)
        service.painter.gate.set()
        answers = await asyncio.gather(*calls)
    await asyncio.to_thread(wait_until, lambda: len(service.painter.requests) == len(requests) + 1)
    return [one.seed for one in service.painter.requests][1:], answers


def test_what_somebody_waits_for_goes_first(guarded: Service) -> None:
    interactive, batch = {"priority": "interactive"}, {"priority": "batch"}
    seeds, answers = asyncio.run(
        order(
            guarded,
            [
                ("/jobs", "alice", {}),
                ("/generate", "alice", batch),
                ("/generate", "alice", {}),
                (OPENAI, "alice", batch),
                (OPENAI, "alice", {}),
                ("/jobs", "alice", interactive),
                ("/jobs", "alice", batch),
            ],
        )
    )
    assert seeds == [3, 5, 6, 1, 2, 4, 7]
    assert [answer.status_code for answer in answers] == [202, 200, 200, 200, 200, 202, 202]
    told = [answers[index].json()["priority"] for index in (0, 5, 6)]
    assert told == ["batch", "interactive", "batch"]


def test_keys_take_turns_by_their_weights(guarded: Service) -> None:
    requests: list[tuple[str, str, dict[str, Any]]]
    requests = [("/jobs", who, {}) for who in ("alice", "carol") for _ in range(8)]
    seeds, _ = asyncio.run(order(guarded, requests))
    assert sum(seed > 8 for seed in seeds[:8]) == 6  # three of carol's for each of alice's


@pytest.mark.parametrize("path", ["/jobs", "/generate", OPENAI])
def test_a_key_may_not_ask_for_more_than_it_has(guarded: Service, path: str) -> None:
    def post(**fields: Any) -> httpx.Response:
        return guarded.call("POST", path, json=body_of(path, **fields), headers=key("bob"))

    refused = post(priority="interactive")
    if path == OPENAI:
        assert refused.status_code == 403
        assert refused.json()["error"]["type"] == "permission_error"
    else:
        assert assert_problem(refused, 403)["type"] == "urn:masc:problem:forbidden"
    assert "priority batch alone" in refused.text
    assert post(priority="batch").is_success
    assert post(priority="urgent").status_code == (400 if path == OPENAI else 422)


@pytest.mark.parametrize("path", ["/jobs", "/generate", OPENAI])
def test_a_key_gets_the_highest_that_it_may_ask_for(guarded: Service, path: str) -> None:
    seeds, answers = asyncio.run(order(guarded, [(path, "bob", {}), ("/generate", "alice", {})]))
    assert seeds == [2, 1]
    assert [answer.is_success for answer in answers] == [True, True]


def test_the_same_idempotency_key_with_another_priority_is_another_request(
    guarded: Service,
) -> None:
    once = key("alice") | {"Idempotency-Key": "k"}
    assert guarded.submit(once, priority="batch").status_code == 202
    assert guarded.submit(once, priority="batch").status_code == 202
    assert_problem(guarded.submit(once, priority="interactive"), 409, "Idempotency-Key")


def test_all_jobs_of_a_key_are_cancelled(guarded: Service) -> None:
    guarded.painter.gate.clear()
    running = guarded.submit(key("alice")).headers["location"]
    wait_until(lambda: bool(guarded.painter.requests))
    own = [guarded.submit(key("alice"), priority=one) for one in ("interactive", "batch", "batch")]
    others = guarded.submit(key("bob"))

    def cancel(who: str, **query: str) -> int:
        answer = guarded.call("DELETE", "/jobs", params={"owner": "me"} | query, headers=key(who))
        assert answer.status_code == 200
        assert set(answer.json()) == {"cancelled"}
        return int(answer.json()["cancelled"])

    def state(location: str) -> str:
        return str(guarded.get(location, **key("alice")).json()["state"])

    assert cancel("carol") == 0
    assert cancel("alice", priority="interactive", state="running") == 0
    assert cancel("alice", priority="interactive") == 1
    assert cancel("alice", state="waiting") == 2
    assert {state(answer.headers["location"]) for answer in own} == {"cancelled"}
    assert state(running) == "running"
    assert cancel("alice") == 1
    assert state(running) == "cancelled"
    assert cancel("alice") == 0
    guarded.painter.gate.set()
    location = others.headers["location"]
    assert read_state(guarded, location, "bob") == "ok"


def read_state(service: Service, location: str, who: str) -> str:
    service.get(f"{location}/events", **key(who))  # the answer ends with the job
    return str(service.get(location, **key(who)).json()["state"])


def test_who_waits_for_a_job_that_is_cancelled_so_is_told(guarded: Service) -> None:
    guarded.painter.gate.clear()

    async def run() -> httpx.Response:
        async with guarded.client() as client:
            asking = asyncio.create_task(
                client.post("/generate", json={"class_id": 0}, headers=key("alice"))
            )
            await asyncio.to_thread(wait_until, lambda: bool(guarded.painter.requests))
            await client.delete("/jobs?owner=me", headers=key("alice"))
            return await asking

    assert assert_problem(asyncio.run(run()), 410)["type"] == "urn:masc:problem:cancelled"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "owner"),
        ("?owner=", "owner"),
        ("?owner=alice", "owner"),
        ("?owner=me&priority=urgent", "priority"),
        ("?owner=me&state=ok", "state"),
    ],
)
def test_whose_jobs_has_to_be_said(guarded: Service, query: str, field: str) -> None:
    assert_problem(guarded.call("DELETE", f"/jobs{query}", headers=key("alice")), 422, field)
    assert_problem(guarded.call("DELETE", f"/jobs{query}"), 401)


def test_without_keys_nobody_s_jobs_are_known(own_service: Service) -> None:
    own_service.painter.gate.clear()
    location = own_service.submit().headers["location"]
    answer = assert_problem(own_service.call("DELETE", "/jobs?owner=me"), 403)
    assert "without keys" in answer["detail"]
    own_service.painter.gate.set()
    assert own_service.ended(location)["state"] == "ok"
