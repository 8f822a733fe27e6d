from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from masc_core.bundle.manifest import Defaults
from tests.server.listening import listening
from tests.server.page.browser import Visitor, finished, generate, visiting
from tests.server.service import Service, write_model


def test_a_run_is_remembered_and_made_again(pictured: Service, page: Page) -> None:
    page.get_by_role("radio", name="ship").check()
    generate(page)
    finished(page)
    page.get_by_role("radio", name="goldfish").check()
    generate(page)
    finished(page, 2)
    page.reload()
    expect(page.locator("#state")).to_have_text("Ready")
    cards = page.locator("#history-list button")
    expect(cards).to_have_count(2)
    expect(cards.nth(0)).to_contain_text("goldfish · CFG 3 · uniform")
    expect(cards.nth(1).locator("img")).to_have_js_property("naturalWidth", 16)
    cards.nth(1).click()
    finished(page)
    ship, _, again = pictured.painter.requests
    assert again == ship
    expect(page.get_by_role("radio", name="ship")).to_be_checked()
    expect(cards).to_have_count(2)
    expect(cards.nth(0)).to_contain_text("ship")


def test_a_comparison_is_made_again_as_one(pictured: Service, page: Page) -> None:
    page.get_by_role("radio", name="CFG row").check()
    generate(page)
    finished(page)
    page.get_by_role("radio", name="Images").check()
    page.locator("#history-list button").click()
    finished(page, 2)
    first, again = (pictured.painter.requests[:5], pictured.painter.requests[5:])
    assert sorted(map(repr, first)) == sorted(map(repr, again))


def test_it_can_be_cleared(page: Page) -> None:
    generate(page)
    finished(page)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#history")).to_be_hidden()
    assert page.evaluate("localStorage.getItem('masc.history')") is None


def test_it_is_bounded_and_survives_nonsense(visitor: Visitor) -> None:
    page = visitor.open()
    page.evaluate(
        """() => {
          const entry = (seed) => ({ settings: { class_id: 0, seed }, title: `run ${seed}`,
                                     picture: "data:image/png;base64,AA" });
          const many = Array.from({ length: 500 }, (_, seed) => entry(seed));
          localStorage.setItem("masc.history", JSON.stringify([null, 7, { title: 1 }, ...many]));
        }"""
    )
    page.reload()
    expect(page.locator("#history-list li")).to_have_count(36)
    page.evaluate("localStorage.setItem('masc.history', '{')")
    page.reload()
    expect(page.locator("#state")).to_have_text("Ready")
    expect(page.locator("#history")).to_be_hidden()


def again_with(page: Page, change: str) -> None:
    """Make again what was made, as it were with other settings."""
    page.evaluate(
        """(change) => {
          const entries = JSON.parse(localStorage.getItem("masc.history"));
          Object.assign(entries[0].settings, JSON.parse(change));
          localStorage.setItem("masc.history", JSON.stringify(entries));
        }""",
        change,
    )
    page.reload()
    expect(page.locator("#state")).to_have_text("Ready")
    page.locator("#history-list button").click()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('{"class_id": 6}', "tiny v1 has no class 6 any more."),
        ('{"decoding": "refine"}', "tiny v1 has no decoding refine any more."),
        ('{"cluster_top_k": 3, "cluster_top_p": 1}', "tiny v1 has no partition any more."),
        ('{"cluster_top_k": 0, "cluster_top_p": 0.5}', "tiny v1 has no partition any more."),
        ('{"model": "gone"}', "The model gone is not served any more."),
    ],
)
def test_what_is_offered_no_more_is_told_and_not_replaced(
    pictured: Service, page: Page, change: str, message: str
) -> None:
    generate(page)
    finished(page)
    again_with(page, change)
    expect(page.locator("#error")).to_have_text(message)
    assert len(pictured.painter.requests) == 1


def test_what_an_entry_does_not_name_is_the_versions_default(
    browser: Browser, tmp_path: Path
) -> None:
    defaults = Defaults(cfg_scale=3.0, cluster_top_k=4, cluster_top_p=0.75)
    write_model(tmp_path / "models", partitions=(5,), defaults=defaults)
    with Service(tmp_path) as service, listening(service), visiting(browser, service) as visitor:
        page = visitor.open()
        generate(page)
        finished(page)
        page.evaluate(
            """() => {
              const entries = JSON.parse(localStorage.getItem("masc.history"));
              const { cluster_top_k, cluster_top_p, ...settings } = entries[0].settings;
              localStorage.setItem("masc.history", JSON.stringify([{ ...entries[0], settings }]));
            }"""
        )
        page.reload()
        expect(page.locator("#draw")).to_be_enabled()
        page.get_by_text("More", exact=True).click()
        page.get_by_label("Clusters kept").fill("2")
        page.get_by_label("Their probability").fill("0.25")
        page.locator("#history-list button").click()
        finished(page)
        first, again = service.painter.requests
        assert again == first
        assert (again.cluster_top_k, again.cluster_top_p) == (4, 0.75)


def test_what_cannot_be_made_again_now_is_told(
    pictured: Service, visitor: Visitor, page: Page
) -> None:
    generate(page)
    finished(page)
    pictured.painter.gate.clear()
    generate(page)
    page.get_by_role("button", name="Make these again").last.click()
    expect(page.locator("#error")).to_have_text("A run is under way. Wait for it, or cancel it.")
    pictured.painter.gate.set()
    finished(page, 2)
    pictured.announce(ready=False, detail="loads tiny v2")
    page.reload()
    expect(page.locator("#state")).to_have_text("Not ready")
    page.locator("#history-list button").first.click()
    expect(page.locator("#error")).to_contain_text("loads tiny v2")
    visitor.expect_complaint("503")
