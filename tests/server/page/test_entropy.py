from __future__ import annotations

import math
import re
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from tests.server.listening import listening
from tests.server.page.browser import Visitor, finished, generate, visiting
from tests.server.service import GRID, LATENT, Service, write_model


def bits(position: int) -> str:
    """What the painter tells of a position."""
    row, column = divmod(position, GRID)
    return f"row {row + 1}, column {column + 1}: {math.log2(2 + position):.2f} bits"


def show_map(page: Page) -> None:
    generate(page)
    finished(page)
    expect(page.locator(".frame canvas")).to_have_count(0)
    page.get_by_role("switch", name="Entropy map").check()


def test_the_map_lies_over_every_image(page: Page) -> None:
    show_map(page)
    expect(page.locator(".frame canvas")).to_have_count(4)
    expect(page.locator("#legend")).to_have_text(re.compile(r"1 bits\s*4.5 bits"))
    pixels = page.evaluate(
        """() => {
          const canvas = document.querySelector(".frame canvas");
          const { data } = canvas.getContext("2d").getImageData(0, 0, 4, 4);
          return [canvas.width, ...data.slice(0, 3), ...data.slice(60, 63)];
        }"""
    )
    low, high = pixels[1:4], pixels[4:7]
    assert pixels[0] == GRID
    assert sum(low) < 150
    assert sum(high) > 450
    page.get_by_role("switch", name="Entropy map").uncheck()
    expect(page.locator(".frame canvas")).to_have_count(0)
    expect(page.locator("#legend")).to_be_hidden()


def test_pointing_reads_a_position(page: Page) -> None:
    show_map(page)
    frame = page.locator(".frame").first
    box = frame.bounding_box()
    assert box is not None
    for position in (0, 6, 15):
        row, column = divmod(position, GRID)
        side = box["width"] / GRID
        frame.hover(position={"x": (column + 0.5) * side, "y": (row + 0.5) * side})
        expect(page.locator(".readout").first).to_have_text(bits(position))


def test_a_model_with_a_partition_has_clusters_to_keep_and_their_entropies(
    browser: Browser, tmp_path: Path
) -> None:
    write_model(tmp_path / "models", partitions=(5,))
    with Service(tmp_path) as service, listening(service), visiting(browser, service) as visitor:
        service.painter.has_partition = True
        page = visitor.open()
        page.get_by_text("More", exact=True).click()
        page.get_by_label("Clusters kept").fill("-1")
        page.get_by_role("button", name="Generate").click()
        complaint = "Clusters kept must be a whole number from 0."
        expect(page.locator("#error")).to_have_text(complaint)
        page.get_by_label("Clusters kept").fill("3")
        page.get_by_label("Their probability").fill("0.5")
        show_map(page)
        (request,) = service.painter.requests
        assert (request.cluster_top_k, request.cluster_top_p) == (3, 0.5)
        expect(page.locator("figcaption").first).to_contain_text("clusters 1.50 bits, 75\u00a0%")
        below = page.locator("figcaption").first
        place = below.evaluate("node => node.offsetTop")
        page.get_by_role("slider", name="Position in the entropy map").first.focus()
        expect(page.locator(".readout").first).to_have_text(f"{bits(0)}, clusters 1.50")
        assert below.evaluate("node => node.offsetTop") == place


def test_a_model_without_a_partition_has_no_clusters_to_keep(page: Page) -> None:
    page.get_by_text("More", exact=True).click()
    expect(page.get_by_label("Top-k")).to_be_visible()
    expect(page.get_by_label("Clusters kept")).to_be_hidden()


def test_arrow_keys_read_positions(page: Page) -> None:
    show_map(page)
    probe = page.get_by_role("slider", name="Position in the entropy map").first
    probe.focus()
    expect(probe).to_have_attribute("aria-valuetext", bits(0))
    for key, position in (("ArrowRight", 1), ("ArrowDown", 5), ("ArrowDown", 9), ("ArrowUp", 5)):
        probe.press(key)
        expect(probe).to_have_attribute("aria-valuetext", bits(position))
        expect(page.locator(".readout").first).to_have_text(bits(position))
    probe.press("End")
    expect(page.locator(".readout").first).to_have_text(bits(15))
    probe.press("ArrowDown")
    expect(page.locator(".readout").first).to_have_text(bits(15))


def test_the_map_of_a_sequence_is_drawn_by_groups(browser: Browser, tmp_path: Path) -> None:
    write_model(tmp_path / "models", latent=LATENT)
    with Service(tmp_path) as service, listening(service), visiting(browser, service) as visitor:
        page = visitor.open()
        show_map(page)
        size = "({ width, height }) => [width, height]"
        assert page.locator(".frame canvas").first.evaluate(size) == [8, 5]  # 1, 1, 2, 4, 8 tokens
        pixels = page.locator(".frame canvas").first.evaluate(
            """(canvas) => {
              const { data } = canvas.getContext("2d").getImageData(0, 0, 8, 5);
              return Array.from({ length: 40 }, (_, i) => data.slice(4 * i, 4 * i + 3).join());
            }"""
        )
        rows = [set(pixels[start : start + 8]) for start in range(0, 40, 8)]
        assert [len(colours) for colours in rows] == [1, 1, 2, 4, 8]
        probe = page.get_by_role("slider", name="Position in the entropy map").first
        probe.focus()
        readout, marker = page.locator(".readout").first, page.locator(".marker").first
        for key, position, place in (
            ("End", 15, "group 5, token 8 of 8"),
            ("ArrowUp", 7, "group 4, token 4 of 4"),
            ("ArrowUp", 3, "group 3, token 2 of 2"),
            ("ArrowUp", 1, "group 2, token 1 of 1"),
            ("ArrowDown", 3, "group 3, token 2 of 2"),
        ):
            probe.press(key)
            expect(readout).to_have_text(f"{place}: {math.log2(2 + position):.2f} bits")
        lies = marker.evaluate("({ style: s }) => [s.left, s.top, s.width, s.height]")
        assert lies == ["50%", "40%", "50%", "20%"]
        box = page.locator(".frame").first.bounding_box()
        assert box is not None
        x, y = 0.3 * box["width"], 0.9 * box["height"]
        page.locator(".frame").first.hover(position={"x": x, "y": y})
        expect(readout).to_have_text(f"group 5, token 3 of 8: {math.log2(12):.2f} bits")


def test_a_preview_of_a_sequence_fills_the_frame_without_a_line(page: Page) -> None:
    drawn = page.evaluate(
        """async () => {
          const { Frame } = await import("/static/frame.js");
          return [[4, 4], [1, 16]].map((shape) => {
            const frame = new Frame({ label: "", name: "ship", size: 16, shape });
            frame.preview({ rows: shape[1] / 4, num_rows: shape[1], format: "png", b64: "" });
            document.body.append(frame.node);
            const line = frame.line.checkVisibility() ? frame.line.style.top : null;
            return [frame.picture.querySelector("img").style.height, line];
          });
        }"""
    )
    assert drawn == [["25%", "25%"], ["", None]]


def test_a_tap_reads_a_position(visitor: Visitor) -> None:
    page = visitor.open(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    generate(page)
    finished(page)
    page.get_by_role("switch", name="Entropy map").tap()
    frame = page.locator(".frame").first
    box = frame.bounding_box()
    assert box is not None
    side = box["width"] / GRID
    frame.tap(position={"x": 2.5 * side, "y": 1.5 * side})
    expect(page.locator(".readout").first).to_have_text(bits(6))


def test_the_range_is_that_of_more_positions_than_a_call_has_arguments(page: Page) -> None:
    found = page.evaluate(
        """async () => {
          const { rangeOf } = await import("/static/entropy.js");
          const images = Array.from({ length: 320 }, (_, image) => ({
            entropies: Array.from({ length: 1024 }, (_, position) => 2 + image + position / 1024),
          }));
          return [rangeOf(images), rangeOf([]), rangeOf([{}]), rangeOf([{ entropies: [3, 3] }])];
        }"""
    )
    assert found == [[2, 322], [0, 1], [0, 1], [3, 3.5]]


def test_images_stay_when_what_comes_after_them_fails(visitor: Visitor) -> None:
    page = visitor.open()
    page.evaluate(
        """() => {
          HTMLCanvasElement.prototype.toDataURL = () => { throw new Error("no pictures here"); };
        }"""
    )
    generate(page)
    finished(page)
    expect(page.locator("#error")).to_have_text("no pictures here")
    expect(page.get_by_role("img", name="Generated: goldfish")).to_have_count(4)
