"""Tables of the documents against what they list."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

from masc_core.bundle import manifest as bundle
from masc_core.bundle.manifest import PATCHES_FILE, TREE_FILE
from server.errors import PROBLEM_TYPES
from server.schemas.generate import GenerateBody
from server.schemas.job import EVENT_MODELS
from tests.command_line import ROOT
from tests.default_settings import default_settings
from tests.docs.markdown import INLINE, Document
from tests.server.service import Service

HTTP = Document(ROOT / "docs" / "http.md")
SETTINGS = Document(ROOT / "docs" / "settings.md")
ARCHITECTURE = Document(ROOT / "docs" / "architecture.md")


def test_every_setting_is_told_with_its_default() -> None:
    written: dict[str, str] = {}
    for names, default, *_ in SETTINGS.rows("variable", "default"):
        values = INLINE.findall(default)
        written |= dict(zip(INLINE.findall(names), values or [""], strict=True))
    assert written == default_settings()


def test_every_field_of_a_request_is_told() -> None:
    written = {name for cells in HTTP.rows("field") for name in INLINE.findall(cells[0])}
    assert written == set(GenerateBody.model_fields)


def test_every_event_is_told() -> None:
    written = [INLINE.findall(cells[0])[0] for cells in HTTP.rows("event")]
    assert written == list(EVENT_MODELS)


def test_every_problem_is_told_with_its_status() -> None:
    written = {
        (slug, int(cells[1]))
        for cells in HTTP.rows("type", "status")
        for slug in INLINE.findall(cells[0])
    }
    assert written == {(kind.slug, kind.status) for kind in PROBLEM_TYPES.values()}


def test_every_route_is_told(own_service: Service) -> None:
    described = own_service.get("/openapi.json").json()["paths"]
    offered = {f"{method.upper()} {path}" for path, ways in described.items() for method in ways}
    written = {code for cells in HTTP.rows("route") for code in INLINE.findall(cells[0])}
    assert without_names(written) == without_names(offered | {"GET /"})


def without_names(routes: set[str]) -> set[str]:
    """Placeholders are called as readers understand them."""
    return {re.sub(r"{\w+}", "{}", route) for route in routes}


def test_every_file_of_a_bundle_is_told() -> None:
    written = {name for cells in ARCHITECTURE.rows("file") for name in INLINE.findall(cells[0])}
    known: dict[str, Any] = {k: v for k, v in vars(bundle).items() if k.endswith("_FILE")}
    partitions = bundle.partition_file(128).replace("128", "<k>")
    told = {*known.values(), TREE_FILE, PATCHES_FILE, partitions}
    assert written | {bundle.MANIFEST_FILE} == told


def test_the_model_of_a_fleet_is_what_its_program_prints() -> None:
    program = [sys.executable, str(ROOT / "benchmarks" / "scale.py")]
    printed = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    text = (ROOT / "docs" / "scale.md").read_text()
    for table in printed.strip().split("\n\n"):
        assert table in text
