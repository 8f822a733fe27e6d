"""The API below a path of a real nginx, which takes the path off or leaves it on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from masc_core.errors import ConfigError
from server.settings import ServerSettings
from tests.reverse_proxy import ABSENT, nginx, nginx_path
from tests.server.listening import listening
from tests.server.service import Service, draw


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path, root_path="/a/masc") as service:
        yield service


@pytest.mark.skipif(nginx_path() is None, reason=ABSENT)
@pytest.mark.parametrize("slash", ["/", ""], ids=["taken off", "left on"])
def test_every_url_of_an_answer_can_be_followed(service: Service, slash: str) -> None:
    location = "location /a/masc/ {{ proxy_pass http://127.0.0.1:{}{}; }}"
    with listening(service) as port, nginx(location.format(port, slash)) as proxy:
        url = f"http://127.0.0.1:{proxy}/a/masc/"
        with httpx.Client(timeout=10) as client:
            accepted = client.post(f"{url}jobs", json={"class_id": 2, "seed": 9})
            assert accepted.status_code == 202
            job = urljoin(url, accepted.headers["location"])
            assert "event: done" in client.get(urljoin(url, accepted.json()["events"])).text
            (image,) = client.get(job).json()["images"]
            assert client.get(urljoin(url, image["url"])).content == draw(2, 9, "png")
            body = {"class_id": 2, "stream": True}
            with client.stream("POST", f"{url}generate", json=body) as streamed:
                assert streamed.headers["content-location"].startswith("/a/masc/jobs/")
            paths = client.get(f"{url}openapi.json").json()
            assert paths["servers"] == [{"url": "/a/masc"}]
            assert "message" in client.get(f"{url}v1/nothing").json()["error"]
            assert client.get(url.removesuffix("/")).status_code in {301, 307}
    assert service.sample("masc_requests_total", endpoint="/jobs", outcome="ok") == 1


def test_without_a_proxy_it_can_be_had_at_both_places(service: Service) -> None:
    for path in ("/", "/a/masc/", "/healthz", "/a/masc/healthz", "/models", "/a/masc/models"):
        assert service.get(path).status_code == 200, path
    assert service.get("/a/masc").headers["location"] == "/a/masc/"
    assert service.get("/a/mascots").status_code == 404


@pytest.mark.parametrize(
    ("given", "path"), [("/masc/", "/masc"), ("/", ""), ("/~a/b-c/", "/~a/b-c")]
)
def test_a_slash_at_its_end_counts_for_nothing(given: str, path: str) -> None:
    assert ServerSettings(root_path=given).root_path == path


@pytest.mark.parametrize("path", ["/models", "/v1/masc", "/jobs/x", "/static", "/healthz"])
def test_one_that_begins_like_a_route_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match=f"MASC_ROOT_PATH: {path} begins like the service's own"):
        Service(tmp_path, root_path=path)
    Service(tmp_path, root_path=f"/x{path}")


@pytest.mark.parametrize(
    "path",
    ["masc", "//", "/ä", "/a%20b", "/a\n", "/a//b", "//evil.example", "/a b", "/a?b", "/a/.."],
)
def test_what_is_no_path_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="root_path"):
        Service(tmp_path, root_path=path)
