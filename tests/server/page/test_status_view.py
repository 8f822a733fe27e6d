from __future__ import annotations

from typing import NoReturn

import pytest
from playwright.sync_api import Page, Route, expect

from masc_core.errors import QueueDownError
from tests.server.page.browser import Visitor, finished, generate
from tests.server.service import Service
from worker.jobs.queue import WorkerStatus


@pytest.fixture
def pictured(own_pictured: Service) -> Service:
    """A service whose figures are of this test alone."""
    return own_pictured


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
    page.clock.install()
    page.reload()
    expect(page.locator("#workers tr")).to_have_count(2)
    with page.expect_response("**/status"):
        page.clock.run_for(2500)
    page.get_by_role("link", name="Generate").click()
    expect(page.locator("#view-generate")).to_be_visible()
    before = len(visitor.requests)
    with page.expect_response("**/readyz"):  # which it asks for in every view
        page.clock.run_for(60_000)
    assert [url for url in visitor.requests[before:] if url.endswith("/status")] == []


async def away(*_: object) -> NoReturn:
    raise QueueDownError("the queue cannot be reached", 2.0)


def test_it_says_that_the_queue_is_away(
    pictured: Service, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = visitor.open()
    monkeypatch.setattr(pictured.queue, "stats", away)
    monkeypatch.setattr(pictured.queue, "workers", away)
    page.get_by_role("link", name="Status").click()
    expect(page.get_by_role("region", name="Queue")).to_contain_text("away")
    expect(page.locator("#status-error")).to_be_hidden()
    expect(page.locator("#served")).to_contain_text("The models are not known: The queue cannot")
    visitor.expect_complaint("503")


def test_closed_metrics_hide_nothing_else(visitor: Visitor) -> None:
    page = visitor.open()
    page.route("**/metrics", lambda route: route.fulfill(status=403, body="closed"))
    page.get_by_role("link", name="Status").click()
    expect(page.get_by_role("region", name="Waiting jobs")).to_contain_text("nothing waits")
    expect(page.get_by_role("region", name="Latency")).to_contain_text("cannot be read")
    expect(page.locator("#latency-hint")).to_have_text(
        "The metrics cannot be read: The service answered 403."
    )
    expect(page.locator("#served")).to_contain_text("tiny (default)")
    expect(page.locator("#status-error")).to_be_hidden()
    visitor.expect_complaint("403")


def test_a_server_that_began_anew_is_counted_anew(visitor: Visitor) -> None:
    page = visitor.open()
    counted = {"requests": 10, "ended": 50}

    def metrics(route: Route) -> None:
        name = "masc_request_duration_seconds"
        labels = 'endpoint="/generate",outcome="ok"'
        number = counted["requests"]
        lines = [
            f'{name}_bucket{{{labels},le="1.0"}} {number}.0',
            f'{name}_bucket{{{labels},le="+Inf"}} {number}.0',
            f"{name}_count{{{labels}}} {number}.0",
            f"{name}_sum{{{labels}}} {number / 2}",
        ]
        route.fulfill(body="\n".join(lines))

    def status(route: Route) -> None:
        answer = route.fetch().json()
        answer["queue"]["ended"] = {"ok": counted["ended"]}
        route.fulfill(json=answer)

    page.route("**/metrics", metrics)
    page.route("**/status", status)
    page.get_by_role("link", name="Status").click()
    expect(page.locator("#latency-hint")).to_contain_text("Means of 10 requests")
    counted.update(requests=2, ended=3)
    expect(page.get_by_role("region", name="Jobs ended")).to_contain_text("3 since the queue began")
    expect(page.locator("#latency-hint")).to_have_text(
        "Means of 2 requests to /generate since this server began."
    )
    expect(page.get_by_role("region", name="Jobs ended")).not_to_contain_text("-")
    expect(page.get_by_role("region", name="Latency")).to_contain_text("500 ms")
    page.unroute_all(behavior="wait")
