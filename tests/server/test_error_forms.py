"""Errors of every part of the front end, over real sockets, in the form of their path."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from server.auth.api_keys import hash_key
from server.state import app_state
from tests.server.asgi import wait_until
from tests.server.listening import listening
from tests.server.service import Service

KEY = "the key of a client"
ORIGIN = "https://app.example"
JSON = "Content-Type: application/json\r\n"
AUTH = f"X-API-Key: {KEY}\r\n"
BODY = '{"class_id": 0, "prompt": "0"}'  # of either API no valid one


def request(path: str, headers: str = AUTH + JSON, body: str = BODY, method: str = "POST") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    host = "" if "Host:" in headers else "Host: localhost\r\n"
    head = f"{method} {path} HTTP/1.1\r\n{host}Origin: {ORIGIN}\r\n{headers}{length}\r\n"
    return (head + body).encode()


def chunked(path: str, rest: str) -> bytes:
    return request(path, AUTH + JSON + "Transfer-Encoding: chunked\r\n", body="") + rest.encode()


# What is sent to a path, and the status of the answer, with OpenAI's in place of 422.
REFUSED: dict[str, tuple[Callable[[str], bytes], int]] = {
    "no such path": (lambda path: request(f"{path}/nothing"), 404),
    "no such method": (lambda path: request(path, method="PUT"), 405),
    "no key": (lambda path: request(path, JSON), 401),
    "not valid": (request, 422),
    "not JSON": (lambda path: request(path, AUTH), 415),
    "another name": (lambda path: request(path, f"Host: evil.example\r\n{AUTH}{JSON}"), 421),
    "a body too large": (lambda path: request(path, body="x" * 70_000), 413),
    "chunks too large": (lambda path: chunked(path, f"11170\r\n{'x' * 70_000}\r\n"), 413),
    "a slow body": (lambda path: chunked(path, "2\r\n{"), 408),
    "a broken chunk": (lambda path: chunked(path, "xyz\r\n"), 400),
    "a slow head": (lambda path: request(path)[:-40], 408),
    "a large head": (lambda path: request(path, f"X: {'y' * 70_000}\r\n"), 431),
    "a broken head": (lambda path: request(path, "no header\r\n"), 400),
    "a broken line": (lambda path: request(path).replace(b"HTTP/1.1", b"HTTP/x", 1), 400),
}


# These end the connection; what is in front of the application knows no origins.
WITHOUT_REQUEST = {
    "a broken chunk",
    "a slow head",
    "a large head",
    "a broken head",
    "a broken line",
}


@pytest.fixture(scope="module", params=["", "/masc"], ids=["at the root", "below a path"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, int, str]]:
    """A service that is in a hurry, its port, and the path below which it is shown."""
    root = tmp_path_factory.mktemp("served")
    (root / "keys.toml").write_text(f'[[keys]]\nname = "a"\nsha256 = "{hash_key(KEY)}"\n')
    with (
        Service(
            root,
            api_keys_file=root / "keys.toml",
            allowed_hosts="masc.example",
            cors_origins=ORIGIN,
            root_path=request.param,
            head_timeout=0.5,
            body_timeout=0.5,
        ) as service,
        listening(service) as port,
    ):
        yield service, port, request.param


def answer(port: int, content: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer, after which the connection is closed or not."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as connection:
        connection.sendall(content)
        head, _, body = connection.recv(1 << 20).partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:])}
        while len(body) < int(headers["content-length"]):
            body += connection.recv(1 << 20)
        return int(lines[0].split()[1]), headers, body


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("path", ["/generate", "/v1/images/generations"])
def test_an_error_has_the_form_of_its_path(
    served: tuple[Service, int, str], case: str, path: str
) -> None:
    _, port, root = served
    make, expected = REFUSED[case]
    status, headers, body = answer(port, make(root + path))
    document = json.loads(body)
    if path.startswith("/v1"):
        assert status == (400 if expected == 422 else expected)
        assert headers["content-type"] == "application/json"
        assert document["error"]["message"]
    else:
        assert status == document["status"] == expected
        assert headers["content-type"] == "application/problem+json"
        assert document["detail"]


@pytest.mark.parametrize("case", [name for name in REFUSED if name not in WITHOUT_REQUEST])
@pytest.mark.parametrize("path", ["/generate", "/v1/images/generations"])
def test_a_page_of_an_allowed_origin_can_read_it(
    served: tuple[Service, int, str], case: str, path: str
) -> None:
    _, port, root = served
    _, headers, _ = answer(port, REFUSED[case][0](root + path))
    assert headers["access-control-allow-origin"] == ORIGIN
    assert headers["vary"] == "Origin"
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/broken", "/v1/broken"])
def test_so_has_what_nobody_foresaw(
    served: tuple[Service, int, str], path: str, caplog: pytest.LogCaptureFixture
) -> None:
    service, port, root = served
    if all(path != getattr(route, "path", "") for route in service.app.routes):

        @service.app.get(path)
        async def broken() -> None:
            raise KeyError("secret")

    def count() -> float:
        return service.sample("masc_requests_total", endpoint=path, outcome="error")

    before = count()
    status, headers, body = answer(port, request(root + path, body="", method="GET"))
    assert status == 500
    assert ("error" in json.loads(body)) is path.startswith("/v1")
    assert headers["access-control-allow-origin"] == ORIGIN
    assert b"secret" not in body
    assert "KeyError: 'secret'" in caplog.text
    wait_until(lambda: count() == before + 1)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/generate", '{"class_id": 0}'), ("/v1/images/generations", '{"prompt": "0"}')],
)
def test_so_has_an_end_of_the_process(tmp_path: Path, path: str, body: str) -> None:
    with Service(tmp_path) as service, listening(service) as port:
        app_state(service.app).drain.begin()
        status, headers, content = answer(port, request(path, JSON, body))
    assert status == 503
    assert headers["retry-after"] == "1"
    assert ("error" in json.loads(content)) is path.startswith("/v1")
