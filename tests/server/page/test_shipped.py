from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.command_line import service
from tests.server.page.browser import Visitor, finished, generate

MODELS = Path(__file__).parents[3] / "models"


def test_the_shipped_model_is_drawn_and_browsed(browser: Browser) -> None:
    with service(MODELS) as (_, client):
        visitor = Visitor(browser, str(client.base_url).rstrip("/"))
        page = visitor.open()
        page.get_by_role("radio", name="ship").check()
        page.get_by_role("slider", name="Images").fill("16")
        generate(page)
        expect(page.locator(".picture img").first).to_be_attached()
        finished(page)
        expect(page.get_by_role("img", name="Generated: ship")).to_have_count(16)
        page.get_by_role("switch", name="Entropy map").check()
        expect(page.locator(".frame canvas")).to_have_count(16)
        page.get_by_role("slider", name="Position in the entropy map").first.press("End")
        expect(page.locator(".readout").first).to_contain_text("row 8, column 8:")
        page.get_by_role("link", name="Codebook", exact=True).first.click()
        expect(page.locator("#codebook-facts")).to_contain_text("2,048 codes in 1,024 clusters")
        page.get_by_label("Order").select_option("size")
        expect(page.locator("#clusters button").first).to_contain_text("13 codes")
        page.get_by_role("button", name="On").click()
        expect(page.locator("#page-line")).to_have_text("61 to 120 of 459 clusters")
        visitor.close()
