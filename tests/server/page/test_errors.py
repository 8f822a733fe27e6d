from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from server.auth.api_keys import hash_key, new_key
from tests.server.listening import listening
from tests.server.page.browser import Visitor, finished, generate, visiting
from tests.server.service import Service
from worker.jobs.outcome import JobFailure


def test_the_field_at_fault_is_marked(page: Page) -> None:
    page.get_by_role("radio", name="CFG row").check()
    page.get_by_label("CFG scales to compare").fill("1, 99")
    generate(page)
    expect(page.locator("#error")).to_have_text("CFG scales: give two to 8 numbers from 1 to 20.")
    expect(page.get_by_label("CFG scales to compare")).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("CFG scales to compare")).to_be_focused()
    page.get_by_label("CFG scales to compare").fill("1, 9")
    generate(page)
    finished(page)
    expect(page.locator("#error")).to_be_hidden()
    expect(page.locator("#form [aria-invalid]")).to_have_count(0)


@pytest.mark.parametrize(
    ("label", "text", "message"),
    [
        ("Seed", "9007199254740990", "Seed must be at most 9007199254740975."),
        ("Seed", "-1", "Seed must be a whole number from 0."),
        ("Top-k, 0 is all", "9007199254740993", "Top-k must be at most 9007199254740991."),
    ],
)
def test_a_number_that_is_too_large_is_told_the_largest(
    page: Page, label: str, text: str, message: str
) -> None:
    page.get_by_text("More", exact=True).click()
    page.get_by_label(label, exact=True).fill(text)
    generate(page)
    expect(page.locator("#error")).to_have_text(message)
    expect(page.get_by_label(label, exact=True)).to_be_focused()


def test_what_the_service_refuses_is_marked_too(visitor: Visitor, page: Page) -> None:
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Top-p").fill("7")
    page.get_by_text("More", exact=True).click()
    generate(page)
    expect(page.locator("#error")).to_contain_text("The request is not valid: top_p: must be")
    expect(page.get_by_label("Top-p")).to_be_visible()
    expect(page.get_by_label("Top-p")).to_be_focused()
    expect(page.get_by_label("Top-p")).to_have_attribute("aria-invalid", "true")
    field, bar = page.get_by_label("Top-p").bounding_box(), page.locator(".actions").bounding_box()
    assert field is not None
    assert bar is not None
    assert field["y"] + field["height"] <= bar["y"]
    expect(page.locator(".result")).to_have_count(0)
    visitor.expect_complaint("422")


def test_a_failed_generation_is_told_in_words(pictured: Service, page: Page) -> None:
    reason = "position 12 has a NaN among its logits"
    pictured.painter.failure = JobFailure("NonFiniteError", reason)
    generate(page)
    expect(page.locator("#error")).to_contain_text(reason)
    expect(page.locator(".result")).to_have_count(0)
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()


def test_no_worker_is_told_and_awaited(tmp_path: Path, browser: Browser) -> None:
    service = Service(tmp_path, working=False)
    with listening(service), visiting(browser, service) as visitor:
        page = visitor.open(ready=False)
        expect(page.locator("#state")).to_have_text("Not ready")
        expect(page.locator("#progress")).to_contain_text("no worker has announced itself")
        expect(page.get_by_role("button", name="Generate")).to_be_disabled()
        service.announce()
        expect(page.locator("#state")).to_have_text("Ready")
        expect(page.get_by_role("button", name="Generate")).to_be_enabled()
        visitor.expect_complaint("503")


def test_a_service_that_is_gone_is_told(tmp_path: Path, browser: Browser) -> None:
    with Service(tmp_path) as service, ExitStack() as until_gone:
        until_gone.enter_context(listening(service))
        with visiting(browser, service) as visitor:
            page = visitor.open()
            until_gone.close()
            generate(page)
            expect(page.locator("#error")).to_contain_text("The service cannot be reached")
            expect(page.locator("#state")).to_have_text("Unreachable")
            expect(page.get_by_role("button", name="Generate")).to_be_disabled()
            visitor.expect_complaint("ERR_CONNECTION_REFUSED")


def test_a_key_is_asked_for_and_not_kept(tmp_path: Path, browser: Browser) -> None:
    key, file = new_key(), tmp_path / "keys.toml"
    file.write_text(f'[[keys]]\nname = "alice"\nsha256 = "{hash_key(key)}"\n')
    with (
        Service(tmp_path, api_keys_file=file) as service,
        listening(service),
        visiting(browser, service) as visitor,
    ):
        page = visitor.open()
        expect(page.get_by_label("API key")).to_be_hidden()
        generate(page)
        expect(page.locator("#error")).to_contain_text("An API key is needed")
        expect(page.get_by_label("API key")).to_be_focused()
        page.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
        finished(page)
        assert key not in page.evaluate("JSON.stringify({...localStorage, ...sessionStorage})")
        assert key not in page.url
        visitor.expect_complaint("401")
