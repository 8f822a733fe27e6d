"""A page that was open before another version, or another model, was served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from masc_core.images import Pixels
from tests.server.listening import listening
from tests.server.page.browser import Visitor, finished, generate, visiting
from tests.server.pictured_model import PATCHES, TREE, write_pictured
from tests.server.service import NUM_CLUSTERS, Service, write_model
from worker.jobs.queue import WorkerStatus

CLASSES = ("hammer", "saw", "file", "drill", "plane", "vice")
OTHER_PATCHES: Pixels = 255 - PATCHES


@pytest.fixture
def pictured(own_pictured: Service) -> Service:
    """A service whose versions may change."""
    return own_pictured


def change_over(service: Service) -> None:
    """Serve another version, with other classes and the codes' patches inverted."""
    write_pictured(
        service.root,
        TREE.cut(NUM_CLUSTERS // 2),
        version="v2",
        patches=OTHER_PATCHES,
        class_names=CLASSES,
    )
    service.announce(version="v2")


def shown_version(page: Page) -> str:
    return page.locator("#model-line").inner_text().split()[1].rstrip(",")


def test_an_open_page_goes_over_to_the_version_that_is_served(
    pictured: Service, visitor: Visitor
) -> None:
    page = visitor.open(ready=False)
    page.clock.install()
    page.reload()
    expect(page.locator("#progress")).to_have_text("Ready.")
    change_over(pictured)
    page.clock.fast_forward(16_000)
    expect(page.get_by_role("radio", name="hammer")).to_be_checked()
    assert shown_version(page) == "v2"
    expect(page.locator("#classes img").first).to_have_attribute("src", thumbnail("v2"))


def thumbnail(version: str) -> str:
    return f"models/tiny/classes/0/thumbnail?v={version}"


def test_a_run_in_another_version_brings_the_page_up_to_it(pictured: Service, page: Page) -> None:
    change_over(pictured)
    pictured.painter.version = "v2"
    generate(page)
    finished(page)
    expect(page.get_by_role("radio", name="hammer")).to_be_checked()
    assert shown_version(page) == "v2"


def test_clusters_and_patches_are_of_one_version(pictured: Service, visitor: Visitor) -> None:
    page = visitor.open("/#codebook")
    expect(page.locator("#clusters li").first).to_be_visible()
    change_over(pictured)
    page.get_by_label("Order").select_option("size")
    expect(page.locator("#codebook-facts")).to_contain_text(f"in {NUM_CLUSTERS // 2} clusters")
    expect(page.locator("#find-error")).to_be_hidden()
    page.get_by_label("What to find").select_option("cluster")
    page.get_by_label("Find", exact=True).fill("0")
    page.get_by_role("button", name="Go").click()
    expect(page.locator("#branch h2")).to_have_text("Cluster 0")
    first = int(page.locator("#branch .codes li").first.inner_text())
    pixel = page.evaluate(
        """() => {
          const canvas = document.querySelector("#branch .codes canvas");
          return [...canvas.getContext("2d").getImageData(1, 1, 1, 1).data.slice(0, 3)];
        }"""
    )
    assert pixel == OTHER_PATCHES[first, 0, 0].tolist()
    visitor.expect_complaint("409")


@pytest.fixture
def two_served(tmp_path: Path) -> Iterator[Service]:
    """A service with the models "big", which is the default, and "tiny"."""
    for name in ("big", "tiny"):
        write_model(tmp_path / "models", name)
    with Service(tmp_path, default_model="big") as service, listening(service):
        service.announce(model="big")
        service.queue.announce(WorkerStatus("second", ready=True, model="tiny", version="v1"))
        yield service


@pytest.fixture
def two_models(two_served: Service, browser: Browser) -> Iterator[Visitor]:
    """Pages of that service."""
    with visiting(browser, two_served) as visitor:
        yield visitor


def test_the_model_that_was_chosen_last_is_shown(two_models: Visitor) -> None:
    page = two_models.open()
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/models/tiny/classes", hold)
    page.get_by_label("Model", exact=True).select_option("tiny")
    expect(page.get_by_role("button", name="Generate")).to_be_disabled()
    page.get_by_label("Model", exact=True).select_option("big")
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    with page.expect_response("**/models/tiny/classes"):
        held[0].continue_()
    page.wait_for_timeout(100)
    expect(page.locator("#model-line")).to_contain_text("big v1")
    expect(page.get_by_label("Model", exact=True)).to_have_value("big")


def test_a_model_that_cannot_be_shown_is_not_chosen(two_models: Visitor) -> None:
    page = two_models.open()
    page.route("**/models/tiny/classes", lambda route: route.fulfill(status=500, json={}))
    page.get_by_label("Model", exact=True).select_option("tiny")
    expect(page.locator("#error")).to_have_text("The service answered 500.")
    expect(page.get_by_label("Model", exact=True)).to_have_value("big")
    expect(page.locator("#model-line")).to_contain_text("big v1")
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    two_models.expect_complaint("500")


def test_a_model_that_has_lost_its_worker_cannot_be_asked_and_the_other_can(
    two_models: Visitor, two_served: Service
) -> None:
    page = two_models.open()
    two_served.queue.remove_worker("second")
    page.get_by_label("Model", exact=True).select_option("tiny")
    expect(page.locator("#state")).to_have_text("Not ready")
    expect(page.locator("#progress")).to_contain_text("no worker serves the model 'tiny'")
    expect(page.get_by_role("button", name="Generate")).to_be_disabled()
    page.get_by_label("Model", exact=True).select_option("big")
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    expect(page.locator("#state")).to_have_text("Ready")
    two_models.expect_complaint("503")
