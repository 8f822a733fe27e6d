"""Measure the page in a real Chromium: its weight, its first paint, and how long a view takes.

::

    python benchmarks/page.py                              # the shipped model, a server of its own
    python benchmarks/page.py --pictures docs/pictures     # also take the pictures of the README
    python benchmarks/page.py --codes 16384                # a made-up codebook of that size as well
    python benchmarks/page.py --out benchmarks/results     # keep the tables

Medians of several visits, each with an empty cache, over loopback. "Bytes" are all that a visit
transfers until it can generate, pictures of the classes included; "first paint" is the browser's
first-contentful-paint.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from fastapi import FastAPI
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from prometheus_client import CollectorRegistry

from masc_core.bundle.codebook_view import CodebookFiles
from masc_core.bundle.manifest import PRIOR_FILE, SAMPLES_FILE, read_manifest, write_manifest
from masc_core.bundle.registry import CURRENT_FILE, Registry
from masc_core.io.files import atomic_write, sha256_file
from masc_core.tree import build_tree
from server.app import create_app
from server.settings import ServerSettings
from worker.jobs.memory import MemoryQueue
from worker.jobs.queue import QueueLimits

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # before packages that install tests, too

from tests.command_line import service  # noqa: E402 - not installed
from tests.server.listening import serving  # noqa: E402
from tests.server.page.browser import ABSENT, chromium, chromium_path, loading  # noqa: E402

MODELS = ROOT / "models"
SEED = 11  # of the pictures
PATCH = 8  # pixels a side, of the made-up codebook


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and take the pictures if they are wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--visits", type=int, default=9)
    parser.add_argument("--codes", type=int, default=0, help="size of a made-up codebook")
    parser.add_argument("--pictures", type=Path, help="folder of the pictures")
    parser.add_argument("--out", type=Path, help="folder for page.md")
    options = parser.parse_args(arguments)
    if chromium_path() is None:
        sys.exit(ABSENT)
    threads = {"OMP_NUM_THREADS": str(os.cpu_count())}
    with chromium() as browser, service(MODELS, **threads) as (_, client):
        url = str(client.base_url).rstrip("/")
        tables = [first_visit(browser, url, options.visits)]
        views = codebook_view(browser, url, 2048)
        if options.pictures:
            options.pictures.mkdir(parents=True, exist_ok=True)
            take_pictures(browser, url, options.pictures)
    if options.codes:
        with tempfile.TemporaryDirectory() as folder:
            made_up(Path(folder), options.codes)
            with chromium() as browser, serving(front_end(Path(folder))) as port:
                views += codebook_view(browser, f"http://127.0.0.1:{port}", options.codes)
    tables.append("\n".join(["| view | codes | ms |", "|---|---|---|", *views]))
    text = "\n\n".join([machine(options.visits), *tables])
    print(text)
    if options.out:
        atomic_write(options.out / "page.md", f"{text}\n".encode())


def machine(visits: int) -> str:
    """What the figures belong to."""
    return f"{os.cpu_count()} cores, {platform.machine()}, loopback, medians of {visits} visits"


def first_visit(browser: Browser, url: str, visits: int) -> str:
    """Weight and times of a first visit."""
    rows = []
    for _ in range(visits):
        page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        page.goto(url)
        expect(page.locator("#draw")).to_be_enabled(timeout=20_000)
        page.wait_for_load_state("networkidle")
        rows.append(loading(page))
        page.context.close()
    size, requests, paint = (statistics.median(column) for column in zip(*rows, strict=True))
    head = "| bytes | requests | first paint ms |\n|---|---|---|"
    return f"{head}\n| {size:,.0f} | {requests:.0f} | {paint:.0f} |"


def codebook_view(browser: Browser, url: str, codes: int) -> list[str]:
    """Time from a click to the clusters and the whole tree, a page further, and a step down."""
    page = browser.new_context().new_page()
    page.goto(url)
    expect(page.locator("#model-line")).not_to_be_empty()
    started = time.perf_counter()
    page.get_by_role("link", name="Codebook", exact=True).first.click()
    expect(page.locator("#branch h2")).to_have_text("The whole tree", timeout=30_000)
    opened = time.perf_counter()
    page.get_by_role("button", name="On", exact=True).click()
    expect(page.locator("#page-line")).to_contain_text("61 to")
    turned = time.perf_counter()
    page.locator("#branch .children button").first.click()
    expect(page.locator("#branch h2")).not_to_have_text("The whole tree")
    stepped = time.perf_counter()
    page.context.close()
    times = {
        "codebook, opened": opened - started,
        "next page": turned - opened,
        "branch": stepped - turned,
    }
    return [f"| {what} | {codes:,} | {1000 * taken:.0f} |" for what, taken in times.items()]


def front_end(models: Path) -> FastAPI:
    """A front end without a worker."""
    settings = ServerSettings(models_dir=models)
    queue = MemoryQueue(QueueLimits(settings.max_queue))
    return create_app(settings, queue, Registry(models), CollectorRegistry())


def made_up(models: Path, codes: int) -> None:
    """Put a bundle without weights under a folder, with a codebook of random rows and patches."""
    shipped = read_manifest(MODELS / "cifar10" / "1")
    folder = models / shipped.name / shipped.version
    folder.mkdir(parents=True)
    (models / shipped.name / CURRENT_FILE).write_text(shipped.version)
    random = np.random.default_rng(0)
    tree = build_tree(random.normal(size=(codes, 8)))
    patches = random.integers(0, 256, (codes, PATCH, PATCH, 3), dtype=np.uint8)
    for name, content in CodebookFiles(tree, patches).encode().items():
        (folder / name).write_bytes(content)
    tree.cut(codes // 2).save(folder / PRIOR_FILE)
    files = shipped.files | {path.name: sha256_file(path) for path in folder.iterdir()}
    del files[SAMPLES_FILE]
    sizes = {"num_codes": codes, "num_clusters": codes // 2, "files": files}
    write_manifest(folder, shipped.model_copy(update=sizes))


def take_pictures(browser: Browser, url: str, folder: Path) -> None:
    """The pictures of the README: a desktop in light, a phone in dark, the codebook."""
    desk = browser.new_page(viewport={"width": 1180, "height": 990}, color_scheme="light")
    make(desk, url, "horse", "CFG row")
    again(desk, "Images")
    desk.evaluate("document.activeElement.blur()")
    desk.evaluate("document.getElementById('form').scrollTop = 0")
    desk.screenshot(path=folder / "playground.png")
    desk.set_viewport_size({"width": 1180, "height": 820})
    desk.goto(f"{url}/#codebook")
    desk.get_by_label("Order").select_option("size")
    expect(desk.locator("#clusters button").first).to_contain_text("13 codes")
    desk.locator("#clusters button").nth(4).click()
    expect(desk.locator("#branch h2")).to_contain_text("Cluster")
    desk.evaluate("document.activeElement.blur()")
    desk.screenshot(path=folder / "playground-codebook.png")
    phone = browser.new_page(
        viewport={"width": 390, "height": 860},
        color_scheme="dark",
        device_scale_factor=1.5,
        is_mobile=True,
        has_touch=True,
    )
    make(phone, url, "ship", "Images")
    phone.get_by_role("switch", name="Entropy map").tap()
    phone.locator(".frame").nth(1).tap()
    phone.evaluate(
        "scrollBy(0, document.getElementById('toolbar').getBoundingClientRect().top - 8)"
    )
    phone.screenshot(path=folder / "playground-phone.png")
    for path in folder.glob("playground*.png"):
        Image.open(path).convert("RGB").save(path, optimize=True)


def make(page: Page, url: str, name: str, kind: str) -> None:
    """Make images of a class from a fixed seed."""
    page.goto(url)
    expect(page.locator("#draw")).to_be_enabled(timeout=20_000)
    page.get_by_role("radio", name=name).check()
    page.get_by_role("checkbox", name="New for every run").uncheck()
    page.get_by_label("Seed", exact=True).fill(str(SEED))
    again(page, kind)


def again(page: Page, kind: str) -> None:
    """Make more with the same seed, in another arrangement."""
    complete = page.locator(".result[aria-busy=false]")
    before = complete.count()
    page.get_by_role("radio", name=kind).check()
    page.get_by_role("button", name="Generate").click()
    expect(complete).to_have_count(before + 1, timeout=20_000)


if __name__ == "__main__":
    main()
