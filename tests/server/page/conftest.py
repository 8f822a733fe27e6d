from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.server.listening import listening
from tests.server.page.browser import ABSENT, Visitor, chromium, chromium_path
from tests.server.pictured_model import write_pictured
from tests.server.service import Service


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    # No longer than this package: while it runs, no other event loop can in this thread.
    if chromium_path() is None:
        pytest.skip(ABSENT)
    with chromium() as running:
        yield running


@pytest.fixture
def pictured(tmp_path: Path) -> Iterator[Service]:
    """A service whose model has thumbnails and a codebook."""
    write_pictured(tmp_path / "models")
    with Service(tmp_path) as running:
        yield running


@pytest.fixture
def visitor(browser: Browser, pictured: Service) -> Iterator[Visitor]:
    """Pages of that service."""
    with listening(pictured) as port:
        found = Visitor(browser, f"http://127.0.0.1:{port}")
        try:
            yield found
        finally:
            pictured.painter.gate.set()
            found.close()


@pytest.fixture
def page(visitor: Visitor) -> Page:
    """The page, ready, on a desktop."""
    return visitor.open()
