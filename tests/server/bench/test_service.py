from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from aiohttp import web

from masc_core.errors import ConfigError
from server.bench.client import open_session
from server.bench.service import Service, ServiceInfo
from tests.server.bench.stand_in import DOCUMENTS, StandIn, refusal, serving


def ask(
    model: str | None = None,
    wanted: str | None = None,
    documents: Mapping[str, Any] = DOCUMENTS,
) -> tuple[ServiceInfo, list[int]]:
    async def run() -> tuple[ServiceInfo, list[int]]:
        stand_in = StandIn(documents=documents)
        async with serving(stand_in), open_session(5.0) as session:
            service = Service(session, stand_in.url)
            info = await service.info(model)
            return info, await service.class_ids(info.model, wanted)

    return asyncio.run(run())


def test_the_default_model_and_all_its_classes() -> None:
    info, ids = ask()
    assert info == ServiceInfo(
        version="1.2.3", model="tiny", model_version="7", weights_sha256="ab" * 32
    )
    assert ids == [0, 1, 2]


def test_another_model() -> None:
    info, ids = ask("other")
    assert (info.model, info.model_version) == ("other", "1")
    assert ids == [4, 5]


@pytest.mark.parametrize("wanted", ["bee", " BEE ", "1"])
def test_a_class_by_name_or_id(wanted: str) -> None:
    assert ask(wanted=wanted)[1] == [1]


@pytest.mark.parametrize(
    ("model", "wanted", "named"),
    [
        ("none", None, "has no model 'none'; there are: tiny, other"),
        (None, "unicorn", "no class 'unicorn'; there are: ant, bee, cat"),
        (None, "3", "no class '3'"),
        ("other", "4", "several classes are called '4': ids [4, 5]"),
    ],
)
def test_what_there_is_not(model: str | None, wanted: str | None, named: str) -> None:
    with pytest.raises(ConfigError) as raised:
        ask(model, wanted)
    assert named in str(raised.value)


@pytest.mark.parametrize(
    ("path", "answer", "named"),
    [
        ("/version", None, "is not MASC: GET /version gave status 404"),
        ("/version", {"name": "nginx", "version": "1"}, "is not MASC: GET /version gave something"),
        ("/version", web.Response(text="<html>"), "is not MASC"),
        ("/version", web.Response(status=302, headers={"Location": "/"}), "gave status 302"),
        ("/version", refusal(401, "No key"), "wants a valid key, in MASC_API_KEY (401)"),
        ("/models", refusal(403, "Wrong key"), "wants a valid key, in MASC_API_KEY (403)"),
        ("/models", refusal(503, "Away"), "is not to be measured now: 503 Away, in detail"),
        ("/models", {"models": []}, "has no default model; there are: none"),
        ("/models", {"models": [{"name": "x"}]}, "is not MASC: GET /models gave something else"),
        ("/models/tiny/classes", {"classes": []}, "is not MASC: GET /models/tiny/classes"),
    ],
)
def test_a_server_that_cannot_be_measured(path: str, answer: Any, named: str) -> None:
    with pytest.raises(ConfigError) as raised:
        ask(documents={**DOCUMENTS, path: answer})
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)
