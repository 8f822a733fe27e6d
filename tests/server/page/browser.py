"""A real Chromium, and pages in it that may not complain."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.server.service import Service

# The shell has no windows to draw around its pages, and takes a third of the time.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome",
         "google-chrome-stable")  # fmt: skip
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
READY_MS = 8_000
ABSENT = "needs Chromium; on Debian: apt-get install chromium-headless-shell"
# Chromium breaks off all loads when the machine gets or loses a network interface, as containers
# that start and stop make it do.
NETWORK_CHANGED = "ERR_NETWORK_CHANGED"


def chromium_path() -> str | None:
    """The Chromium of this machine; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start it with a fresh profile."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Visitor:
    """Opens pages of one server, and notes whatever goes wrong in them.

    Parameters
    ----------
    browser : where
    url : of the server, without a slash at its end
    """

    def __init__(self, browser: Browser, url: str) -> None:
        self.url = url
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._browser = browser
        self._contexts: list[BrowserContext] = []

    def open(self, path: str = "/", *, ready: bool = True, **options: Any) -> Page:
        """A page in a context of its own; ``ready`` waits until it can generate."""
        size = {"width": 1280, "height": 900}
        context = self._browser.new_context(
            **{"viewport": size, "locale": "en", "base_url": self.url, **options}
        )
        self._contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(READY_MS)
        page.on("console", lambda said: self._note(said.type, said.text))
        page.on("pageerror", lambda error: self._note("error", str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(self.url + path)
        for _ in range(3):
            page.wait_for_load_state("load")
            if not any(NETWORK_CHANGED in text for text in self.complaints):
                break
            self.complaints.clear()
            page.reload()
        if ready:
            expect(page.locator("#state")).to_have_text("Ready", timeout=READY_MS)
            expect(page.locator("#draw")).to_be_enabled(timeout=READY_MS)
        return page

    def expect_complaint(self, pattern: str) -> None:
        """Take away complaints that the test has provoked; there is at least one."""
        kept = [text for text in self.complaints if not re.search(pattern, text)]
        assert kept != self.complaints, self.complaints
        self.complaints = kept

    def close(self) -> None:
        """Close all pages; nothing may have been complained of or fetched from elsewhere."""
        for context in self._contexts:
            context.close()
        assert not self.complaints, self.complaints
        ours = urlsplit(self.url).netloc
        foreign = [url for url in self.requests if not _is_ours(url, ours)]
        assert not foreign, foreign

    def _note(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.complaints.append(text)


@contextmanager
def visiting(browser: Browser, service: Service) -> Iterator[Visitor]:
    """Visit a service that listens; what its worker holds back is let go at the end."""
    visitor = Visitor(browser, service.url)
    try:
        yield visitor
    finally:
        service.painter.gate.set()
        visitor.close()


def generate(page: Page) -> None:
    """Press the button."""
    page.get_by_role("button", name="Generate").click()


def finished(page: Page, results: int = 1) -> None:
    """Wait until so many results are complete, and the run is over: remembered in the browser."""
    expect(page.locator(".result[aria-busy=false]")).to_have_count(results, timeout=READY_MS)
    expect(page.locator("#cancel")).to_be_hidden(timeout=READY_MS)


class Loading(NamedTuple):
    """How a page came: itself with all its files in bytes and requests, and its first paint."""

    size: int
    requests: int
    paint_ms: float


def loading(page: Page) -> Loading:
    """What the browser has timed of a page that is there."""
    return Loading(
        *page.evaluate(
            """() => {
              const files = [...performance.getEntriesByType("navigation"),
                             ...performance.getEntriesByType("resource")];
              return [files.reduce((all, file) => all + file.transferSize, 0), files.length,
                      performance.getEntriesByName("first-contentful-paint")[0].startTime];
            }"""
        )
    )


def _is_ours(url: str, netloc: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in {"data", "blob"} or parts.netloc == netloc
