from __future__ import annotations

from pathlib import Path

import pytest

from masc_core.bundle.manifest import MANIFEST_FILE
from masc_core.errors import ArtifactError, ConfigError
from server.middleware.headers import SECURITY_HEADERS
from tests.server.service import Service, assert_problem, write_model


@pytest.mark.parametrize(
    "path", ["/nope", "/nope/", "/generate/", "/models/", "/docs", "/redoc", "/favicon.ico", "/%ff"]
)
def test_unknown_paths_are_problems(service: Service, path: str) -> None:
    problem = assert_problem(service.get(path), 404)
    assert problem["type"] == "about:blank"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW", "HEAD"])
def test_other_methods_are_told_which_there_are(service: Service, method: str) -> None:
    response = service.call(method, "/generate")
    if method != "HEAD":
        assert_problem(response, 405)
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"


def test_what_nobody_foresaw_is_a_problem_too(own_service: Service) -> None:
    @own_service.app.get("/broken")
    async def broken() -> None:
        raise KeyError("secret")

    response = own_service.get("/broken")
    assert_problem(response, 500)
    assert "secret" not in response.text
    assert (
        SECURITY_HEADERS.items()
        <= {name.title(): text for name, text in response.headers.items()}.items()
    )
    labels = {"endpoint": "/broken", "outcome": "error"}
    assert own_service.sample("masc_requests_total", **labels) == 1


@pytest.mark.parametrize("path", ["/", "/healthz", "/nope", "/metrics", "/static/app.js"])
def test_every_answer_carries_the_security_headers(service: Service, path: str) -> None:
    response = service.get(path)
    for name, value in SECURITY_HEADERS.items():
        assert response.headers[name] == value


def test_several_models_need_a_default(tmp_path: Path) -> None:
    for name in ("big", "tiny"):
        write_model(tmp_path / "models", name)
    with pytest.raises(ConfigError, match=r"MASC_DEFAULT_MODEL.*big, tiny"):
        Service(tmp_path)
    with Service(tmp_path, default_model="big") as service:
        service.announce(model="big")
        assert service.generate().json()["model"]["name"] == "big"
        assert_problem(service.generate(model="tiny"), 503)
        models = service.get("/models").json()["models"]
        assert [(model["name"], model["default"]) for model in models] == [
            ("big", True),
            ("tiny", False),
        ]


def test_a_default_that_does_not_exist_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"MASC_DEFAULT_MODEL.*'huge'"):
        Service(tmp_path, default_model="huge")


def test_without_models_there_is_no_start(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises(ArtifactError, match="models"):
        Service(tmp_path)


def test_a_damaged_manifest_stops_the_start(tmp_path: Path) -> None:
    write_model(tmp_path / "models")
    (tmp_path / "models" / "tiny" / "v1" / MANIFEST_FILE).write_text('{"name": "tiny"}')
    with pytest.raises(ArtifactError, match=MANIFEST_FILE):
        Service(tmp_path)


def test_two_applications_in_one_process_do_not_mix(tmp_path: Path) -> None:
    with Service(tmp_path / "a") as first, Service(tmp_path / "b") as second:
        first.generate()
        labels = {"endpoint": "/generate", "outcome": "ok"}
        assert first.sample("masc_requests_total", **labels) == 1
        assert second.sample("masc_requests_total", **labels) == 0
