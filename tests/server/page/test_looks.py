from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from server.routes.page import STATIC
from tests.server.page.browser import Visitor, finished, generate, loading
from tests.server.service import Service

MAX_BYTES = 300_000
MAX_PAINT_MS = 1000
PHONE = {"width": 390, "height": 844}
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


def background(page: Page) -> int:
    """Brightness of the page, 0 to 765."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))


def violations(page: Page) -> list[str]:
    found = Axe().run(page, options=RULES).response["violations"]
    return [f"{one['id']}: {[node['target'] for node in one['nodes']]}" for one in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_shut_out(visitor: Visitor, scheme: str) -> None:
    page = visitor.open(color_scheme=scheme)
    assert violations(page) == []
    generate(page)
    finished(page)
    page.get_by_role("switch", name="Entropy map").check()
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Top-p").fill("")
    generate(page)
    expect(page.locator("#error")).to_be_visible()
    assert violations(page) == []
    page.get_by_role("link", name="Codebook", exact=True).first.click()
    page.get_by_label("Order").select_option("size")
    page.locator("#clusters button").first.click()
    expect(page.locator("#branch h2")).to_contain_text("Cluster")
    assert violations(page) == []
    page.get_by_role("link", name="Status").click()
    expect(page.locator("#workers tr")).to_have_count(2)
    assert violations(page) == []


def test_dark_and_light_follow_the_system_or_the_switch(visitor: Visitor) -> None:
    page = visitor.open(color_scheme="dark")
    assert background(page) < 100
    page.emulate_media(color_scheme="light")
    assert background(page) > 650
    for name, is_dark in (("light", False), ("dark", True)):
        page.locator("#theme").click()
        expect(page.locator("#theme")).to_have_attribute("aria-label", f"Colours: {name}")
        assert (background(page) < 100) is is_dark
    page.reload()
    assert background(page) < 100


def test_a_phone_shows_all_without_scrolling_sideways(visitor: Visitor) -> None:
    page = visitor.open(viewport=PHONE, is_mobile=True, has_touch=True)
    page.get_by_role("radio", name="CFG row").check()
    generate(page)
    finished(page)
    for view in ("generate", "codebook", "status"):
        page.evaluate(f"location.hash = '{view}'")
        expect(page.locator(f"#view-{view}")).to_be_visible()
        page.wait_for_timeout(150)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.evaluate("location.hash = 'generate'")
    buttons = page.locator("#view-generate button:visible, #view-generate input[type=radio]")
    for index in range(buttons.count()):
        box = buttons.nth(index).bounding_box()
        assert box is not None
        assert box["height"] >= 24


def test_everything_is_done_with_keys_alone(visitor: Visitor) -> None:
    page = visitor.open()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "search":
            break
    page.keyboard.type("tea")
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("radio", name="teapot")).to_be_focused()
    page.keyboard.press("Enter")
    finished(page)
    expect(page.get_by_role("img", name="Generated: teapot")).to_have_count(4)
    page.keyboard.press("Control+Enter")
    finished(page, 2)


def test_motion_stops_for_who_wants_none(visitor: Visitor) -> None:
    page = visitor.open(reduced_motion="reduce")
    name = page.evaluate(
        """() => {
          const frame = document.createElement("div");
          frame.className = "frame waiting";
          document.body.append(frame);
          return getComputedStyle(frame).animationName;
        }"""
    )
    assert name == "none"


def test_the_page_is_light_and_quick(visitor: Visitor) -> None:
    visits = [loading(visitor.open()) for _ in range(3)]
    assert max(visit.size for visit in visits) < MAX_BYTES
    # What else runs on the machine can only delay a paint: the quickest visit is the page's own.
    assert min(visit.paint_ms for visit in visits) < MAX_PAINT_MS
    modules = sorted(path.name for path in STATIC.glob("*.js"))
    loaded = {url.rsplit("/", 1)[1] for url in visitor.requests if url.endswith(".js")}
    assert sorted(loaded) == modules


def test_a_thousand_classes_are_searched_at_once(visitor: Visitor) -> None:
    page = visitor.open()
    picture = page.request.get("/models/tiny/classes/0/thumbnail").body()
    page.route("**/thumbnail?v=x", lambda route: route.fulfill(body=picture))
    page.evaluate(
        """async () => {
          const { showClasses } = await import("/static/classes.js");
          const classes = Array.from({ length: 1000 }, (_, id) => ({ id, name: `class ${id}` }));
          showClasses({ name: "tiny", version: "x", has_thumbnails: true }, classes);
        }"""
    )
    seconds = page.evaluate(
        """() => {
          const search = document.getElementById("search");
          const before = performance.now();
          search.value = "99";
          search.dispatchEvent(new Event("input"));
          document.getElementById("classes").getBoundingClientRect();
          return (performance.now() - before) / 1000;
        }"""
    )
    assert seconds < 0.5
    expect(page.locator("#class-count")).to_have_text("19 of 1000 classes")
    page.wait_for_timeout(200)
    asked = [url for url in visitor.requests if "thumbnail?v=x" in url]
    assert len(asked) < 200
    page.unroute_all(behavior="wait")


def test_the_content_is_skipped_to_in_every_view(visitor: Visitor) -> None:
    for view in ("generate", "codebook/40", "status"):
        page = visitor.open(f"/#{view}")
        page.get_by_role("link", name="Skip to the content").press("Enter")
        expect(page.locator("#main")).to_be_focused()
        expect(page.locator(f"#view-{view.split('/')[0]}")).to_be_visible()
        assert page.url.endswith(f"#{view}")


def test_what_stays_the_same_is_read_out_once(pictured: Service, visitor: Visitor) -> None:
    pictured.announce(ready=False, detail="loads tiny v1")
    page = visitor.open("/#status", ready=False)
    page.clock.install()
    page.reload()
    page.route("**/status", lambda route: route.fulfill(status=500, json={}))
    expect(page.locator("#status-error")).to_have_text("The service answered 500.")
    expect(page.locator("#progress")).to_contain_text("loads tiny v1")
    page.evaluate(
        """() => {
          window.written = [];
          const note = (changes) => written.push(...changes.map(({ target }) => target.id));
          for (const node of document.querySelectorAll("[role=status], [role=alert]")) {
            new MutationObserver(note).observe(node, { childList: true, characterData: true });
          }
        }"""
    )
    for path in ("status", "readyz", "status"):
        with page.expect_response(f"**/{path}"):
            page.clock.run_for(4500)
    assert page.evaluate("written") == []
    page.close()  # or it goes on complaining
    visitor.expect_complaint("50[03]")
