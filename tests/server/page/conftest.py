from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.server.asgi import wait_until
from tests.server.listening import listening
from tests.server.page.browser import ABSENT, Visitor, chromium, chromium_path, visiting
from tests.server.pictured_model import write_pictured
from tests.server.service import Service


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    # No longer than this package: while it runs, no other event loop can in this thread.
    if chromium_path() is None:
        pytest.skip(ABSENT)
    with chromium() as running:
        yield running


@pytest.fixture(scope="package")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose model has thumbnails and a codebook, and listens."""
    root = tmp_path_factory.mktemp("pictured")
    write_pictured(root / "models")
    with Service(root) as running, listening(running):
        yield running


@pytest.fixture
def pictured(shared: Service) -> Service:
    """That service as it was when it started, but for what its queue and metrics have counted."""
    shared.reset()
    wait_until(lambda: not (shared.queue._waiting or shared.queue._running))
    shared.painter.requests.clear()
    shared.queue._ends.clear()
    return shared


@pytest.fixture
def own_pictured(tmp_path: Path) -> Iterator[Service]:
    """Such a service that a test has for itself."""
    write_pictured(tmp_path / "models")
    with Service(tmp_path) as running, listening(running):
        yield running


@pytest.fixture
def visitor(browser: Browser, pictured: Service) -> Iterator[Visitor]:
    """Pages of that service."""
    with visiting(browser, pictured) as visitor:
        yield visitor


@pytest.fixture
def page(visitor: Visitor) -> Page:
    """The page, ready, on a desktop."""
    return visitor.open()
