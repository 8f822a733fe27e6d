from __future__ import annotations

import threading
from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.server.listening import listening
from tests.server.page.browser import finished, generate, visiting
from tests.server.service import GRID, Service, write_model
from worker.jobs.job import GenerationRequest


def test_a_completed_image_says_that_its_details_come_at_the_end(
    tmp_path: Path, browser: Browser
) -> None:
    write_model(tmp_path / "models", decodings=("uniform", "complete"))
    with Service(tmp_path) as service, listening(service), visiting(browser, service) as visitor:
        page = visitor.open()
        rows = service.painter.rows = threading.Semaphore(2)
        page.locator("#count").fill("1")
        page.get_by_role("radio", name="complete").check()
        generate(page)
        expect(page.locator("figcaption")).to_have_text("Details come at the end")
        rows.release(GRID)
        finished(page)
        expect(page.locator("figcaption")).to_contain_text("bits")
        expect(page.locator(".timings")).to_contain_text("completing6 ms")
        assert [request.decoding for request in service.painter.requests] == ["complete"]
        service.painter.rows = None
        page.get_by_role("radio", name="Decoding row").check()
        generate(page)
        finished(page, 2)
        expect(page.locator(".comparison .label")).to_have_text(["uniform", "complete"])


def test_settings_of_codes_are_sent_for_the_decoding_that_has_them(
    tmp_path: Path, browser: Browser
) -> None:
    write_model(tmp_path / "models", decodings=("uniform", "complete"))
    with Service(tmp_path) as service, listening(service), visiting(browser, service) as visitor:
        page = visitor.open()
        page.get_by_text("More", exact=True).click()
        controls = [
            page.get_by_label(label) for label in ("Code temperature", "Codes kept", "CFG of codes")
        ]
        for control in controls:
            expect(control).to_be_hidden()
        generate(page)
        finished(page)
        page.get_by_role("radio", name="complete").check()
        controls[0].focus()
        for control, default, chosen in zip(
            controls, ("1", "0", "1"), ("0.5", "3", "2.5"), strict=True
        ):
            expect(control).to_be_focused()
            expect(control).to_have_value(default)
            control.fill(chosen)
            page.keyboard.press("Tab")
        controls[2].fill("0.5")
        page.get_by_role("button", name="Generate").click()
        expect(page.locator("#error")).to_contain_text("code_cfg_scale")
        expect(controls[2]).to_be_focused()
        visitor.expect_complaint("422")
        controls[2].fill("2.5")
        generate(page)
        finished(page, 2)
        page.get_by_role("radio", name="Decoding row").check()
        generate(page)
        finished(page, 3)
        page.reload()
        expect(page.locator("#draw")).to_be_enabled()
        page.locator("#history-list button").nth(1).click()
        finished(page)
        plain, completed, *row, again = service.painter.requests
        compared = {request.decoding: request for request in row}
        assert codes(plain) == codes(compared["uniform"]) == (1.0, 0, 1.0)
        assert codes(completed) == codes(compared["complete"]) == (0.5, 3, 2.5)
        assert again == completed


def codes(request: GenerationRequest) -> tuple[float, int, float]:
    return (request.code_temperature, request.code_top_k, request.code_cfg_scale)
