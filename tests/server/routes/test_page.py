from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest

from masc_core.images import ImageFormat
from masc_core.sampling.cfg_schedule import CFG_SCHEDULES, effective_schedule
from server.routes.page import STATIC
from tests.server.service import Service, assert_problem

FORM_CONTROLS = {"input", "select", "textarea"}
CHOICES = {"checkbox", "radio"}  # their labels are around them
SCRIPTS = sorted(STATIC.glob("*.js"))
MOST_LINES = 350  # of a file
IMPORT = re.compile(r'from "\./([\w.]+)"')


class Elements(HTMLParser):
    """Every start tag of a page with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def elements(service: Service) -> list[tuple[str, dict[str, str | None]]]:
    return Elements(service.get("/").text).found


def references(service: Service) -> set[str]:
    return {
        value
        for _, attributes in elements(service)
        for name, value in attributes.items()
        if name in {"href", "src"} and value
    }


def test_the_page_and_all_it_refers_to_is_there(service: Service) -> None:
    response = service.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    paths = {reference for reference in references(service) if not reference.startswith("#")}
    files = {f"static/{path.name}" for path in STATIC.iterdir()} - {"static/index.html"}
    assert paths == files | {"openapi.json", "metrics"}
    for path in paths:
        assert service.get(f"/{path}").status_code == 200


@pytest.mark.parametrize("path", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_a_file_is_of_one_thing(path: Path) -> None:
    assert len(path.read_text().splitlines()) < MOST_LINES


def test_modules_are_fetched_at_once_and_not_one_after_the_other(service: Service) -> None:
    links = [attributes for tag, attributes in elements(service) if tag == "link"]
    hinted = {link["href"] for link in links if link.get("rel") == "modulepreload"}
    imported = {f"static/{name}" for path in SCRIPTS for name in IMPORT.findall(path.read_text())}
    assert hinted == imported


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("app.js", "text/javascript; charset=utf-8"),
        ("app.css", "text/css; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    ],
)
def test_files_come_as_they_are(service: Service, name: str, media_type: str) -> None:
    response = service.get(f"/static/{name}")
    assert response.headers["content-type"] == media_type
    assert response.content == (STATIC / name).read_bytes()


def test_a_browser_fetches_a_file_once(service: Service) -> None:
    first = service.get("/static/app.js")
    assert first.headers["cache-control"] == "no-cache"
    again = service.get("/static/app.js", **{"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    assert again.content == b""
    assert again.headers["etag"] == first.headers["etag"]
    changed = service.get("/static/app.js", **{"If-None-Match": '"other"'})
    assert changed.status_code == 200


@pytest.mark.parametrize("name", ["nothing.js", "%2e%2e%2fapp.py", "..%2f..%2fapp.py", "app.js%00"])
def test_no_other_file_is_served(service: Service, name: str) -> None:
    assert_problem(service.get(f"/static/{name}"), 404)


def test_nothing_is_inline_or_from_elsewhere(service: Service) -> None:
    for tag, attributes in elements(service):
        assert tag != "style"
        assert tag != "script" or attributes.get("src")
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
    forbidden = r"(https?:)?//[\w.]+\.\w|@import|innerHTML|insertAdjacentHTML|eval\("
    for path in STATIC.iterdir():
        if path.suffix != ".svg":  # whose namespace looks like an address
            assert not re.search(forbidden, path.read_text())


def test_the_policy_allows_only_what_is_ours(service: Service) -> None:
    policy = service.get("/").headers["content-security-policy"]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data: blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


def test_every_control_has_a_name(service: Service) -> None:
    found = elements(service)
    labelled = {attributes.get("for") for tag, attributes in found if tag == "label"}
    for tag, attributes in found:
        if tag in FORM_CONTROLS and attributes.get("type") not in CHOICES:
            named = {"aria-label", "aria-labelledby"} & set(attributes)
            assert attributes.get("id") in labelled or named


def test_what_can_be_chosen_is_what_a_request_may_say(service: Service) -> None:
    offered: dict[str | None, list[str | None]] = {}
    for tag, attributes in elements(service):
        if tag == "select":
            offered[attributes["id"]] = options = []
        elif tag == "option":
            options.append(attributes.get("value"))
    # The two names of a step are one function.
    schedules = [one for one in CFG_SCHEDULES if effective_schedule(2.0, one) == one]
    assert offered["cfg-schedule"] == schedules
    assert {*offered["format"]} == {*get_args(ImageFormat)}


def test_scripts_find_every_element_that_they_ask_for(service: Service) -> None:
    ids = {attributes.get("id") for _, attributes in elements(service)}
    scripts = "".join(path.read_text() for path in SCRIPTS)
    asked = set(re.findall(r'element\("([\w-]+)"\)', scripts))
    assert len(asked) > 40
    assert asked <= ids


def test_the_page_is_light(service: Service) -> None:
    assert sum(path.stat().st_size for path in STATIC.iterdir()) < 150_000
    assert service.get("/").status_code == 200


def test_a_key_is_typed_unseen_and_never_part_of_an_address(service: Service) -> None:
    ((_, key),) = [found for found in elements(service) if found[1].get("id") == "key"]
    assert (key["type"], key["autocomplete"]) == ("password", "off")
    assert "name" not in key
    assert 'headers["X-API-Key"] = secret' in service.get("/static/service.js").text
