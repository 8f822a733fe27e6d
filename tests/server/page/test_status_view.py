from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.server.page.browser import Visitor, finished, generate
from tests.server.service import Service
from worker.jobs.state import WorkerStatus


def tile(page: Page, name: str) -> str:
    return page.get_by_role("region", name=name, exact=True).inner_text()


def test_it_says_how_the_service_is(pictured: Service, visitor: Visitor) -> None:
    page = visitor.open()
    generate(page)
    finished(page)
    pictured.queue.announce(WorkerStatus("second", ready=False, detail="loads tiny v1"))
    page.get_by_role("link", name="Status").click()
    expect(page.get_by_role("heading", name="Status")).to_be_visible()
    expect(page.locator("#workers tr")).to_have_count(3)
    assert "ready" in tile(page, "Service")
    assert "of 2 announced" in tile(page, "Workers ready")
    assert "1 since the queue began" in tile(page, "Jobs ended")
    expect(page.locator("#latency-hint")).to_contain_text("Means of 1 request to /generate")
    expect(page.locator("#workers")).to_contain_text("loads tiny v1")
    expect(page.locator("#served")).to_contain_text("tiny (default)")


def test_it_follows_the_queue(pictured: Service, visitor: Visitor) -> None:
    page = visitor.open("/#status")
    expect(page.get_by_role("region", name="Waiting jobs")).to_contain_text("nothing waits")
    pictured.painter.gate.clear()
    for _ in range(4):
        page.request.post("/jobs", data={"class_id": 1})
    expect(page.get_by_role("region", name="Waiting jobs")).to_contain_text("3")
    expect(page.get_by_role("region", name="Running jobs")).to_contain_text("1")
    pictured.painter.gate.set()
    expect(page.get_by_role("region", name="Jobs ended")).to_contain_text("4 since the queue began")


def test_it_looks_only_while_it_is_seen(visitor: Visitor) -> None:
    page = visitor.open("/#status")
    expect(page.locator("#workers tr")).to_have_count(2)
    page.get_by_role("link", name="Generate").click()
    expect(page.locator("#view-generate")).to_be_visible()
    page.wait_for_timeout(100)
    before = len(visitor.requests)
    page.wait_for_timeout(2500)
    assert [url for url in visitor.requests[before:] if url.endswith("/status")] == []
