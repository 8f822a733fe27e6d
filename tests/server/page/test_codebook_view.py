from __future__ import annotations

from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, Page, Route, expect

from tests.server.listening import listening
from tests.server.page.browser import Visitor, visiting
from tests.server.pictured_model import NUM_CODES, PATCHES, PRIOR, TREE
from tests.server.service import NUM_CLUSTERS, Service

ROOT = 2 * NUM_CODES - 2
SEVERAL = int((PRIOR.sizes >= 2).sum())


def open_codebook(visitor: Visitor, node: str = "") -> Page:
    page = visitor.open(f"/#codebook{node}")
    expect(page.locator("#clusters li").first).to_be_visible()
    return page


def test_it_says_what_there_is(visitor: Visitor) -> None:
    page = open_codebook(visitor)
    expect(page.locator("#codebook-facts")).to_contain_text(
        f"{NUM_CODES} codes in {NUM_CLUSTERS} clusters: {NUM_CLUSTERS - SEVERAL} of one code, "
        f"the largest of {PRIOR.sizes.max()}"
    )
    expect(page.locator("#clusters li")).to_have_count(SEVERAL)
    expect(page.locator("#page-line")).to_have_text(f"1 to {SEVERAL} of {SEVERAL} clusters")
    expect(page.locator("#branch h2")).to_have_text("The whole tree")


def test_a_cluster_shows_its_codes_as_patches(visitor: Visitor) -> None:
    page = open_codebook(visitor)
    page.get_by_label("Order").select_option("size")
    largest = int(PRIOR.sizes.max())
    first = page.locator("#clusters button").first
    expect(first).to_contain_text(f"{largest} codes")
    first.click()
    expect(first).to_have_attribute("aria-pressed", "true")
    title = page.locator("#branch h2").inner_text()
    number = int(title.removeprefix("Cluster "))
    codes = set(np.flatnonzero(PRIOR.labels == number).tolist())
    shown = [int(text) for text in page.locator("#branch .codes li").all_inner_texts()]
    assert set(shown) == codes
    pixel = page.evaluate(
        """() => {
          const canvas = document.querySelector("#branch .codes canvas");
          return [...canvas.getContext("2d").getImageData(1, 1, 1, 1).data.slice(0, 3)];
        }"""
    )
    assert pixel == PATCHES[shown[0], 0, 0].tolist()
    expect(page.get_by_role("img", name=f"Merges of cluster {number}")).to_be_visible()


def test_the_tree_is_walked_down_and_up(visitor: Visitor) -> None:
    page = open_codebook(visitor)
    sizes = []
    while (children := page.locator("#branch .children button")).count():
        title = page.locator("#branch h2").inner_text()
        hint = page.locator("#branch > p.hint").first.inner_text()
        children.last.click()
        expect(page.locator("#branch > p.hint").first).not_to_have_text(hint)
        sizes.append(title)
    assert sizes[0] == "The whole tree"
    assert len(sizes) > 3
    code = int(page.url.rsplit("/", 1)[1])
    assert code < NUM_CODES
    page.get_by_role("button", name="the whole tree").click()
    expect(page.locator("#branch h2")).to_have_text("The whole tree")


def test_a_code_and_a_cluster_are_found_by_number(visitor: Visitor) -> None:
    page = open_codebook(visitor)
    page.get_by_label("What to find").select_option("code")
    page.get_by_label("Find", exact=True).fill("7")
    page.get_by_role("button", name="Go").click()
    expect(page.locator("#branch .codes li").filter(has_text="7")).to_be_visible()
    page.get_by_label("Find", exact=True).fill("99")
    page.get_by_role("button", name="Go").click()
    expect(page.locator("#find-error")).to_have_text("There are codes 0 to 31.")
    page.get_by_label("What to find").select_option("cluster")
    page.get_by_label("Find", exact=True).fill("3")
    page.get_by_label("Find", exact=True).press("Enter")
    expect(page.locator("#branch h2")).to_have_text("Cluster 3")
    expect(page.locator("#find-error")).to_be_hidden()


def test_an_answer_that_was_overtaken_shows_nothing(visitor: Visitor) -> None:
    page = open_codebook(visitor)
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/codebook/clusters/2?*", hold)
    page.route("**/codebook/clusters?sort=size&*", hold)
    find = page.get_by_label("Find", exact=True)

    with page.expect_request("**/codebook/clusters?sort=size&*"):
        page.get_by_label("Order").select_option("size")
    page.get_by_label("Order").select_option("tree")
    with page.expect_request("**/codebook/clusters/2?*"):
        find.fill("2")
        find.press("Enter")
    find.fill("99")
    find.press("Enter")
    expect(page.locator("#find-error")).to_have_text(f"There are clusters 0 to {NUM_CLUSTERS - 1}.")
    first = page.locator("#clusters button").first.inner_text()
    for route in held:
        with page.expect_response(route.request.url):
            route.continue_()
    page.evaluate("() => new Promise((ready) => requestAnimationFrame(() => setTimeout(ready)))")

    expect(page.locator("#find-error")).to_have_text(f"There are clusters 0 to {NUM_CLUSTERS - 1}.")
    expect(page.locator("#branch h2")).to_have_text("The whole tree")
    assert page.locator("#clusters button").first.inner_text() == first


def test_the_address_leads_to_a_branch(visitor: Visitor) -> None:
    page = open_codebook(visitor, f"/{ROOT - 1}")
    size = int(TREE.linkage[-2, 3])
    expect(page.locator("#branch h2")).to_have_text(f"Branch of {size} codes")
    expect(page.locator("#branch .above")).to_contain_text("the whole tree")


def test_small_clusters_come_when_asked_for(visitor: Visitor) -> None:
    page = open_codebook(visitor)
    page.get_by_label("Codes at least").select_option("1")
    expect(page.locator("#clusters li")).to_have_count(NUM_CLUSTERS)
    page.get_by_label("Codes at least").select_option("10")
    expect(page.locator("#page-line")).to_have_text("No cluster is that large.")


def test_a_model_without_pictures_says_so(tmp_path: Path, browser: Browser) -> None:
    with Service(tmp_path) as service, listening(service), visiting(browser, service) as visitor:
        page = visitor.open("/#codebook")
        expect(page.locator("#codebook-error")).to_contain_text(
            "tiny v1 was published without pictures of its codebook"
        )
        expect(page.locator("#codebook-body")).to_be_hidden()
        page.get_by_role("link", name="Generate").click()
        expect(page.locator("#classes b").first).to_have_text("G")


def test_codes_that_are_all_the_same_are_joined_by_lines(page: Page) -> None:
    drawn = page.evaluate(
        """async () => {
          const { dendrogram } = await import("/static/chart.js");
          const merges = [{ node: 5, height: 0, children: [2, 4] },
                          { node: 4, height: 0, children: [0, 1] }];
          const canvas = dendrogram({ codes: [0, 1, 2], merges }, { draw: () => {} });
          const { data, width } = canvas.getContext("2d").getImageData(0, 131, canvas.width, 2);
          return Array.from({ length: width }, (_, x) => x)
            .filter((x) => data[4 * x + 3] && data[4 * (width + x) + 3]);
        }"""
    )
    assert (drawn[0], drawn[-1], len(drawn)) == (11, 70, 60)
