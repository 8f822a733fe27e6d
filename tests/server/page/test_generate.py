from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.server.asgi import wait_until
from tests.server.listening import listening
from tests.server.page.browser import Visitor, finished, generate, visiting
from tests.server.service import CLASS_NAMES, GRID, Service, draw
from worker.jobs.outcome import JobFailure


def test_images_of_the_chosen_class(pictured: Service, page: Page) -> None:
    page.get_by_role("radio", name="teapot").check()
    page.get_by_role("slider", name="Images").fill("3")
    page.get_by_role("checkbox", name="New for every run").uncheck()
    page.get_by_label("Seed", exact=True).fill("41")
    generate(page)
    finished(page)
    images = page.get_by_role("img", name="Generated: teapot")
    expect(images).to_have_count(3)
    (request,) = pictured.painter.requests
    assert (request.class_id, request.seed, request.num_images) == (3, 41, 3)
    assert (request.cfg_scale, request.decoding, request.format) == (3.0, "uniform", "png")
    shown = images.nth(2).get_attribute("src")
    assert shown is not None
    with page.expect_download() as download:
        page.get_by_role("link", name="Save the image of teapot, seed 43").click()
    assert download.value.path().read_bytes() == draw(3, 43, "png")
    expect(page.locator("figcaption").nth(0)).to_contain_text("Seed 41")
    expect(page.locator("figcaption").nth(0)).to_contain_text("bits a position")
    expect(page.locator(".timings")).to_contain_text("in all15 ms")
    expect(page.locator("#progress")).to_contain_text("3 images in")


def test_every_setting_arrives(pictured: Service, page: Page) -> None:
    page.get_by_label("Guidance").fill("7.5")
    page.get_by_role("radio", name="frequency").check()
    page.get_by_text("More", exact=True).click()
    page.get_by_label("CFG schedule").select_option("step")
    page.get_by_label("CFG start").fill("0.25")
    page.get_by_label("Temperature", exact=True).fill("0.8")
    page.get_by_label("Top-k").fill("12")
    page.get_by_label("Top-p").fill("0.9")
    page.get_by_label("File format").select_option("webp")
    generate(page)
    finished(page)
    (request,) = pictured.painter.requests
    assert (request.cfg_scale, request.decoding, request.format) == (7.5, "frequency", "webp")
    assert (request.temperature, request.top_k, request.top_p) == (0.8, 12, 0.9)
    assert (request.cfg_schedule, request.cfg_start) == ("step", 0.25)
    assert str(request.seed) == page.get_by_label("Seed", exact=True).input_value()


def test_a_random_seed_is_new_and_a_fixed_one_stays(pictured: Service, page: Page) -> None:
    for runs in (1, 2):
        generate(page)
        finished(page, runs)
    page.get_by_role("button", name="Use seed").first.click()
    expect(page.get_by_role("checkbox", name="New for every run")).not_to_be_checked()
    for runs in (3, 4):
        generate(page)
        finished(page, runs)
    first, second, third, fourth = [request.seed for request in pictured.painter.requests]
    assert first != second == third == fourth


def test_images_appear_row_by_row(pictured: Service, page: Page) -> None:
    rows = pictured.painter.rows = threading.Semaphore(0)
    generate(page)
    preview = page.locator(".frame.drawing .picture img").first
    for height in ["25%", "50%", "75%"]:
        rows.release()
        expect(preview).to_have_attribute("style", re.compile(f"height: {height}"))
    rows.release(4 * GRID - 3)
    finished(page)


def test_cancelling_ends_the_job(pictured: Service, page: Page) -> None:
    pictured.painter.gate.clear()
    generate(page)
    expect(page.locator("#progress")).to_have_text("Drawing 4 images of goldfish…")
    expect(page.get_by_role("button", name="Generate")).to_be_hidden()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#progress")).to_have_text("Cancelled.")
    expect(page.locator(".result")).to_have_count(0)
    expect(page.get_by_role("button", name="Generate")).to_be_focused()
    wait_for_cancelled(pictured)


def wait_for_cancelled(service: Service) -> None:
    """Wait for the queue to hear of it: the page goes on at once."""
    wait_until(lambda: bool(service.queue._ends))
    assert service.queue._ends == {"cancelled": 1}


def test_escape_cancels_too(pictured: Service, page: Page) -> None:
    pictured.painter.gate.clear()
    generate(page)
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#progress")).to_have_text("Cancelled.")
    wait_for_cancelled(pictured)


@pytest.mark.parametrize("pressed_in", ["#search", "#format"])
def test_escape_in_a_control_of_its_own_ends_nothing(
    pictured: Service, page: Page, pressed_in: str
) -> None:
    pictured.painter.gate.clear()
    page.get_by_label("Search the classes").fill("gold")
    page.get_by_text("More", exact=True).click()
    generate(page)
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    page.locator(pressed_in).press("Escape")
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    page.get_by_label("Search the classes").fill("")
    page.get_by_label("Search the classes").press("Escape")
    expect(page.locator("#progress")).to_have_text("Cancelled.")


def test_escape_closes_a_dialog_and_not_the_run(pictured: Service, page: Page) -> None:
    generate(page)
    finished(page)
    pictured.painter.gate.clear()
    generate(page)
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.get_by_role("button", name="Copy as curl").last.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()


def test_who_waits_is_told_its_place(pictured: Service, page: Page) -> None:
    pictured.painter.gate.clear()
    body = json.dumps({"class_id": 1, "priority": "interactive"}).encode()
    for _ in range(3):
        page.request.post("/jobs", data=body, headers={"Content-Type": "application/json"})
    generate(page)
    expect(page.locator("#progress")).to_contain_text("2 jobs ahead")
    pictured.painter.gate.set()
    finished(page)


def test_search_finds_classes_by_name_and_id(page: Page) -> None:
    search = page.get_by_label("Search the classes")
    expect(search).to_have_attribute("placeholder", f"Search {len(CLASS_NAMES)} classes")
    search.fill("GOLD")
    expect(page.locator("#classes label:visible")).to_have_text(["goldfish", "Golden Retriever"])
    expect(page.locator("#class-count")).to_have_text("2 of 6 classes")
    search.fill("3")
    expect(page.locator("#classes label:visible")).to_have_text(["teapot"])
    search.press("Enter")
    expect(page.get_by_role("radio", name="teapot")).to_be_checked()
    search.fill("unicorn")
    expect(page.locator("#class-count")).to_have_text("No class is called so.")


def test_an_empty_search_changes_no_choice(page: Page) -> None:
    search = page.get_by_label("Search the classes")
    page.get_by_role("radio", name="teapot").check()
    search.press("Enter")
    expect(search).to_be_focused()
    expect(page.get_by_role("radio", name="teapot")).to_be_checked()
    expect(page.locator(".result")).to_have_count(0)
    search.press("ArrowDown")
    expect(page.get_by_role("radio", name="teapot")).to_be_focused()
    expect(page.get_by_role("radio", name="teapot")).to_be_checked()


def test_classes_have_pictures(page: Page) -> None:
    pictures = page.locator("#classes img")
    expect(pictures).to_have_count(len(CLASS_NAMES))
    for index in range(len(CLASS_NAMES)):
        expect(pictures.nth(index)).to_have_js_property("complete", value=True)
        expect(pictures.nth(index)).to_have_js_property("naturalWidth", 64)


def test_a_row_of_cfg_scales_shares_a_seed(pictured: Service, page: Page) -> None:
    page.get_by_role("radio", name="CFG row").check()
    page.get_by_label("CFG scales to compare").fill("1, 2.5 9")
    generate(page)
    finished(page)
    assert sorted(request.cfg_scale for request in pictured.painter.requests) == [1.0, 2.5, 9.0]
    assert len({request.seed for request in pictured.painter.requests}) == 1
    expect(page.locator(".comparison .label")).to_have_text(["CFG 1", "CFG 2.5", "CFG 9"])
    expect(page.locator(".comparison img")).to_have_count(3)


def test_a_row_of_schedules_shares_a_scale(pictured: Service, page: Page) -> None:
    page.get_by_role("radio", name="Schedule row").check()
    page.get_by_text("More", exact=True).click()
    page.get_by_label("CFG start").fill("2")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#error")).to_have_text("CFG start must be from 0 to 1.")
    page.get_by_label("CFG start").fill("0.3")
    generate(page)
    finished(page)
    requests = pictured.painter.requests
    assert {(request.cfg_scale, request.seed) for request in requests} == {(3.0, requests[0].seed)}
    assert {request.cfg_schedule: request.cfg_start for request in requests} == {
        "constant": 0.18,
        "step": 0.3,
        "linear": 0.18,
        "linear_re": 0.18,
        "triangular": 0.18,
    }
    labels = ["constant", "step from 0.3", "linear", "linear_re", "triangular"]
    expect(page.locator(".comparison .label")).to_have_text(labels)


def test_a_row_leaves_connections_for_the_page(
    pictured: Service, visitor: Visitor, page: Page
) -> None:
    pictured.painter.gate.clear()
    page.get_by_role("radio", name="CFG row").check()
    page.get_by_label("CFG scales to compare").fill("1 2 3 4 5 6 7 8")
    generate(page)
    page.get_by_role("link", name="Status").click()
    expect(page.get_by_role("region", name="Running jobs")).to_contain_text("1")
    expect(page.get_by_role("region", name="Waiting jobs")).to_contain_text("2")
    assert len([url for url in visitor.requests if url.endswith("/generate")]) == 3
    pictured.painter.gate.set()
    page.get_by_role("link", name="Generate").click()
    finished(page)
    expect(page.locator(".comparison img")).to_have_count(8)
    assert len(pictured.painter.requests) == 8


def test_what_a_row_has_made_stays_when_the_rest_is_refused(
    tmp_path: Path, browser: Browser
) -> None:
    with (
        Service(tmp_path, rate_limit=3) as service,
        listening(service),
        visiting(browser, service) as visitor,
    ):
        page = visitor.open()
        page.get_by_role("radio", name="CFG row").check()
        generate(page)
        finished(page)
        expect(page.locator(".comparison .label")).to_have_text(["CFG 1", "CFG 2", "CFG 3"])
        expect(page.locator(".comparison img")).to_have_count(3)
        expect(page.locator("#error")).to_contain_text("Too many requests")
        expect(page.locator("#progress")).to_have_text("3 images had been made.")
        page.get_by_role("switch", name="Entropy map").check()
        expect(page.locator(".frame canvas")).to_have_count(3)
        visitor.expect_complaint("429")


def test_what_a_row_has_made_stays_when_it_is_cancelled(pictured: Service, page: Page) -> None:
    page.get_by_role("radio", name="CFG row").check()
    rows = pictured.painter.rows = threading.Semaphore(GRID + 1)
    generate(page)
    expect(page.locator(".comparison .frame").nth(1)).to_have_class(re.compile("drawing"))
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#progress")).to_contain_text("Cancelled.")
    rows.release(4 * GRID)
    finished(page)
    expect(page.get_by_role("img", name="Generated")).to_have_count(1)


def test_a_row_of_decodings_shares_a_seed(pictured: Service, page: Page) -> None:
    page.get_by_role("radio", name="Decoding row").check()
    expect(page.locator("#decoding-field")).to_be_hidden()
    generate(page)
    finished(page)
    assert {request.decoding for request in pictured.painter.requests} == {"uniform", "frequency"}
    assert len({request.seed for request in pictured.painter.requests}) == 1
    expect(page.locator(".comparison .label")).to_have_text(["uniform", "frequency"])


def test_sixteen_images_at_once(pictured: Service, page: Page) -> None:
    page.locator("#count").fill("16")
    generate(page)
    finished(page)
    expect(page.locator(".picture img")).to_have_count(16)
    assert len({page.locator("figure").nth(i).inner_text() for i in range(16)}) == 16


@pytest.mark.parametrize("kind", ["curl", "Python"])
def test_copied_commands_make_the_same_image(
    visitor: Visitor, pictured: Service, kind: str
) -> None:
    page = visitor.open(permissions=["clipboard-read", "clipboard-write"])
    page.locator("#count").fill("1")
    generate(page)
    finished(page)
    page.get_by_role("button", name=f"Copy as {kind}").click()
    expect(page.locator("#progress")).to_have_text(f"Copied as {kind}.")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert f"{visitor.url}/generate" in copied
    run_copied(kind, copied)
    first, again = pictured.painter.requests
    assert first == again


@pytest.mark.parametrize("kind", ["curl", "Python"])
def test_copied_commands_of_a_row_make_a_file_each(
    visitor: Visitor, pictured: Service, kind: str
) -> None:
    page = visitor.open(permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("radio", name="Schedule row").check()
    generate(page)
    finished(page)
    page.get_by_role("button", name=f"Copy as {kind}").click()
    expect(page.locator("#progress")).to_have_text(f"Copied as {kind}.")
    run_copied(kind, page.evaluate("navigator.clipboard.readText()"), num_files=5)


def test_a_copied_command_writes_no_error_into_the_image(
    visitor: Visitor, pictured: Service
) -> None:
    page = visitor.open(permissions=["clipboard-read", "clipboard-write"])
    page.locator("#count").fill("1")
    generate(page)
    finished(page)
    page.get_by_role("button", name="Copy as curl").click()
    expect(page.locator("#progress")).to_have_text("Copied as curl.")
    copied = page.evaluate("navigator.clipboard.readText()")
    pictured.painter.failure = JobFailure("NonFiniteError", "a NaN")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            ["bash", "-c", copied], cwd=folder, check=False, capture_output=True, timeout=60
        )
        assert done.returncode != 0
        assert b"500" in done.stderr
        assert list(Path(folder).iterdir()) == []


def run_copied(kind: str, text: str, num_files: int = 1) -> None:
    program = ["bash", "-c", text] if kind == "curl" else [sys.executable, "-c", text]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(program, cwd=folder, check=True, capture_output=True, timeout=60)
        assert len(list(Path(folder).iterdir())) == num_files
