"""Names under which the service is called, and pages of other origins."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from server.middleware.hosts import allowed_names
from tests.reverse_proxy import ABSENT, nginx, nginx_path
from tests.server.listening import listening
from tests.server.service import Service, assert_problem


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/generate", "/no/where"])
def test_a_name_from_outside_is_not_answered(tmp_path: Path, path: str) -> None:
    with Service(tmp_path, working=False) as service:
        for name in (
            "evil.example",
            "evil.example:8000",
            "LOCALHOST.evil.example.",
            "127.0.0.1.x",
            "[::1].evil.example",
            "127.0.0.1:80@evil.example",
            "x:evil.example",
        ):
            answer = service.call(
                "POST" if path == "/generate" else "GET", path, headers={"Host": name}
            )
            document = assert_problem(answer, 421)
            assert "MASC_ALLOWED_HOSTS" in document["detail"]
            assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "localhost",
            "LOCALHOST:8000",
            "app.localhost",
            "127.0.0.1:8000",
            "[::1]:8000",
            "10.1.2.3",
        ),
        *("server:8000", "localhost."),
    ],
)
def test_this_machine_s_own_names_are(tmp_path: Path, name: str) -> None:
    with Service(tmp_path, working=False) as service:
        assert service.get("/healthz", Host=name).status_code == 200


def test_names_of_the_settings_are(tmp_path: Path) -> None:
    hosts = "masc.example, *.masc.example"
    with Service(tmp_path, working=False, allowed_hosts=hosts, host="192.0.2.1") as service:
        for name in ("masc.example", "a.b.masc.example:1", "127.0.0.1", "192.0.2.1"):
            assert service.get("/healthz", Host=name).status_code == 200
        for name in ("xmasc.example", "other.example"):
            assert service.get("/healthz", Host=name).status_code == 421


@pytest.mark.parametrize(
    ("given", "host", "published", "has_keys", "checked"),
    [
        ("", "127.0.0.1", "", False, True),
        ("", "0.0.0.0", "127.0.0.1", False, True),  # noqa: S104 - in a container
        ("", "127.0.0.1", "", True, False),
        ("", "0.0.0.0", "", False, False),  # noqa: S104
        ("a.example", "0.0.0.0", "", True, True),  # noqa: S104
    ],
)
def test_it_is_checked_where_a_foreign_page_could_use_the_service(
    given: str, host: str, published: str, has_keys: bool, checked: bool
) -> None:
    names = allowed_names(given, host=host, published_host=published, has_keys=has_keys)
    assert (names is not None) is checked


FOREIGN = "proxy_set_header Host evil.example;"
BEHIND = "location / {{ {} proxy_pass http://{}; }}"


@pytest.mark.skipif(nginx_path() is None, reason=ABSENT)
@pytest.mark.parametrize(
    ("line", "setting", "status"),
    [
        ("", "", 200),  # nginx names the address that it calls
        ("proxy_set_header Host $host;", "", 421),
        ("proxy_set_header Host $http_host;", "masc.example", 200),
        ("proxy_set_header Host $host;", "*.example", 200),
        ("proxy_set_header Host other.example;", "masc.example", 421),
        ("proxy_set_header X-Forwarded-Host evil.example;", "masc.example", 200),
        (
            "proxy_set_header Host evil.example; proxy_set_header X-Forwarded-Host localhost;",
            "",
            421,
        ),
        (
            'proxy_set_header Host evil.example; proxy_set_header Forwarded "host=localhost";',
            "",
            421,
        ),
    ],
)
def test_behind_a_proxy_the_name_is_what_it_passes_on(
    tmp_path: Path, line: str, setting: str, status: int
) -> None:
    with (
        Service(tmp_path, working=False, allowed_hosts=setting) as service,
        listening(service) as port,
        nginx(BEHIND.format(line, f"127.0.0.1:{port}")) as proxy,
    ):
        url = f"http://127.0.0.1:{proxy}/healthz"
        assert httpx.get(url, headers={"Host": "masc.example:8443"}).status_code == status


PRIVATE = {"Access-Control-Request-Private-Network": "true"}


def test_pages_of_other_origins_may_use_it_only_where_the_settings_say_so(tmp_path: Path) -> None:
    asking = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, idempotency-key",
    }
    with Service(tmp_path / "closed", working=False) as service:
        assert (
            "access-control-allow-origin"
            not in service.call("OPTIONS", "/generate", headers=asking).headers
        )
    origins = "https://app.example, https://other.example"
    with Service(tmp_path / "open", cors_origins=origins) as service:
        preflight = service.call("OPTIONS", "/generate", headers=asking)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        for also in ({"Access-Control-Request-Method": "HEAD"}, PRIVATE):
            assert service.call("OPTIONS", "/x", headers=asking | also).status_code == 200
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        body = {"class_id": 1, "seed": 3}
        answer = service.call("POST", "/generate", json=body, headers={"Origin": asking["Origin"]})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "Location" in answer.headers["access-control-expose-headers"]
        foreign = service.get("/healthz", Origin="https://evil.example")
        assert "access-control-allow-origin" not in foreign.headers
