from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter, Depends

from masc_core.io.files import atomic_write
from server.auth.api_keys import OWNER_DIGITS, Client, hash_key
from server.auth.dependencies import AdminDependency, ClientDependency, known_client
from server.state import app_state
from tests.server.asgi import Exchange
from tests.server.auth.test_api_keys import ALICE, BOB, ROOT, write_keys
from tests.server.service import Service, assert_problem

BEARER = {"Authorization": f"Bearer {ALICE}"}
HEADER = {"X-API-Key": ALICE}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with keys, and with routes that say who asks."""
    root = tmp_path_factory.mktemp("guarded")
    with Service(root, **write_keys(root)) as service:
        router = APIRouter(prefix="/probe", dependencies=[Depends(known_client)])

        @router.get("/client")
        async def client(client: ClientDependency) -> Client:
            return client

        @router.get("/nothing")
        async def nothing() -> None:
            pass

        @service.app.get("/admin/probe")
        async def admin(admin: AdminDependency) -> str:
            return admin

        service.app.include_router(router)
        yield service


def generate(service: Service, headers: Mapping[str, str]) -> httpx.Response:
    return service.call("POST", "/generate", json={"class_id": 0}, headers=headers)


@pytest.mark.parametrize(
    "headers",
    [
        BEARER,
        HEADER,
        {"authorization": f"bearer   {ALICE}"},
        {"x-api-key": ALICE},
        {"Authorization": "Basic dTpw", **HEADER},
        {"Authorization": f"Bearer {BOB}", **HEADER},
        {"Authorization": "Bearer of-the-proxy", **HEADER},
    ],
)
def test_a_key_comes_in_either_header(guarded: Service, headers: dict[str, str]) -> None:
    assert generate(guarded, headers).status_code == 200
    assert guarded.get("/probe/client", **headers).json() == {
        "name": "alice",
        "key": hash_key(ALICE)[:OWNER_DIGITS],
        "requests_per_minute": 0,
        "queue_share": 0.5,
        "weight": 1.0,
        "priority": "interactive",
    }


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": ALICE},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {ALICE}"},
        {"Authorization": f"Bearer {ALICE}x"},
        {"Authorization": f"Bearer {ROOT}"},
        {"X-API-Key": ""},
        {"X-API-Key": "\xe9"},
        {"X-API-Key": "wrong", **BEARER},
        {"Cookie": f"X-API-Key={ALICE}"},
    ],
)
def test_without_a_known_key_the_answer_is_401(guarded: Service, headers: dict[str, str]) -> None:
    guarded.painter.requests.clear()
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    for method, path in (
        ("POST", "/generate"),
        ("GET", "/probe/client"),
        ("GET", "/probe/nothing"),
    ):
        response = guarded.call(method, path, headers=raw)
        problem = assert_problem(response, 401)
        assert problem["type"] == "urn:masc:problem:no-key"
        assert response.headers["www-authenticate"] == "Bearer"
    assert guarded.painter.requests == []


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/static/app.js", "/models", "/models/tiny/classes", "/healthz", "/readyz"),
        *("/metrics", "/version", "/openapi.json"),
    ],
)
def test_what_starts_no_work_is_open(guarded: Service, path: str) -> None:
    assert guarded.get(path).status_code == 200


def test_a_body_is_not_read_before_the_key(guarded: Service) -> None:
    exchange = Exchange([b"{", b"}"])
    asyncio.run(exchange.run(guarded.app))
    assert (exchange.status, exchange.read) == (401, 0)


def test_a_key_opens_what_is_wrong_in_itself(guarded: Service) -> None:
    response = guarded.call("POST", "/generate", json={"class_id": -1}, headers=HEADER)
    assert_problem(response, 422, "class_id")


def test_without_keys_any_key_is_welcome(own_service: Service) -> None:
    for headers in ({}, HEADER, BEARER):
        assert generate(own_service, headers).status_code == 200


@pytest.mark.parametrize(
    ("key", "status"), [(None, 401), ("wrong", 401), (ALICE, 403), (ROOT, 200)]
)
def test_admin_routes_need_an_admin_s_key(guarded: Service, key: str | None, status: int) -> None:
    ways = [{"X-API-Key": key}, {"Authorization": f"Bearer {key}"}] if key else [{}]
    for headers in ways:
        response = guarded.get("/admin/probe", **headers)
        if status == 200:
            assert response.json() == "root"
        else:
            assert_problem(response, status)
            assert ("www-authenticate" in response.headers) == (status == 401)


def test_admin_routes_are_closed_without_admins(own_service: Service) -> None:
    @own_service.app.get("/admin/probe")
    async def admin(admin: AdminDependency) -> None:
        pass

    for headers in ({}, HEADER):
        problem = assert_problem(own_service.get("/admin/probe", **headers), 403)
        assert "closed" in problem["detail"]


def test_the_log_has_the_name_and_nothing_has_the_key(
    guarded: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answers = [generate(guarded, headers) for headers in (HEADER, BEARER, {"X-API-Key": ROOT})]
    answers += [guarded.get("/admin/probe", **HEADER), guarded.get("/openapi.json")]
    assert " of alice" in caplog.text
    state = app_state(guarded.app)
    everything = [caplog.text, guarded.exposition(), repr(state)]
    everything += [f"{answer.headers} {answer.text}" for answer in answers]
    for secret in (ALICE, ROOT):
        assert not any(secret in text for text in everything)


def test_a_new_key_of_a_revoked_name_has_nothing_of_the_old_owner_s(tmp_path: Path) -> None:
    with Service(tmp_path, **write_keys(tmp_path)) as service:
        again = {"Idempotency-Key": "k"}
        made = service.call("POST", "/jobs", json={"class_id": 0}, headers=HEADER | again)
        where = made.headers["Location"]
        assert service.get(where, **HEADER).status_code == 200
        new = {"X-API-Key": "another key of alice"}
        entry = f'[[keys]]\nname = "alice"\nsha256 = "{hash_key(new["X-API-Key"])}"\n'
        atomic_write(tmp_path / "api_keys_file", entry.encode(), mode=0o600)
        until = time.monotonic() + 10.0
        while service.get(where, **HEADER).status_code != 401:
            assert time.monotonic() < until
        for path in (where, f"{where}/images/0", f"{where}/events"):
            assert_problem(service.get(path, **new), 404, "id")
        assert_problem(service.call("DELETE", where, headers=new), 404, "id")
        other = service.call("POST", "/jobs", json={"class_id": 0}, headers=new | again)
        assert other.status_code == 202
        assert other.headers["Location"] != where
