from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from masc_core.prior import ClusterMap
from tests.prior_trees import random_order, random_patches
from tests.training.studies.atlas_reader import AtlasReader
from training.studies.atlas import atlas_clusters, split_clusters
from training.studies.atlas_page import Overview, atlas_pages, page_stem
from training.studies.atlas_sheet import Sheet, draw_sheet

OVERVIEW = Overview("Codes & <clusters>", {"V": "60 > 30"}, {"tree.png": 'a "tree"'})
LOCAL = ("tree.png", *(page_stem(i) + suffix for i in range(9) for suffix in (".png", ".html")))


def sheets_of(prior: ClusterMap, codes_per_sheet: int = 25) -> list[Sheet]:
    order = random_order(prior.num_codes)
    parts = split_clusters(atlas_clusters(prior, order), codes_per_sheet)
    return [draw_sheet(part, random_patches(prior.num_codes)) for part in parts]


def read_pages(sheets: list[Sheet]) -> list[AtlasReader]:
    return [AtlasReader(page) for page in atlas_pages(sheets, OVERVIEW)]


@pytest.mark.parametrize("num_clusters", [1, 30, 60])
def test_every_code_appears_once_and_in_its_cluster(num_clusters: int) -> None:
    prior = random_order(60).tree.cut(num_clusters)
    pages = read_pages(sheets_of(prior))
    patches = [patch for page in pages for patch in page.patches]
    assert sorted(patch.code for patch in patches) == list(range(60))
    assert all(prior.labels[patch.code] == patch.cluster for patch in patches)
    anchors = [anchor for page in pages for anchor in page.anchors]
    wanted = [f"code-{i}" for i in range(60)] + [f"cluster-{i}" for i in range(num_clusters)]
    assert sorted(anchors) == sorted(wanted)


def test_each_window_shows_the_patch_of_its_code() -> None:
    patches = random_patches(60)
    sheets = sheets_of(random_order(60).tree.cut(30))
    for index, (sheet, page) in enumerate(zip(sheets, read_pages(sheets), strict=True)):
        with Image.open(io.BytesIO(sheet.png)) as image:
            pixels = np.asarray(image.convert("RGB"))
        for patch in page.patches:
            (left, top), (width, height) = patch.corner, patch.size
            assert patch.source == f"{page_stem(index)}.png"
            assert patch.lazy
            shown = pixels[top : top + height, left : left + width]
            assert np.array_equal(shown, patches[patch.code])


def test_pages_need_nothing_from_elsewhere_and_no_script() -> None:
    for page in read_pages(sheets_of(random_order(60).tree.cut(30))):
        assert not page.tags & {"script", "link", "iframe", "object", "base", "form"}
        assert not any(name.startswith("on") for name in page.attributes)
        assert {reference.split("#")[0] for reference in page.references} <= set(LOCAL)
        assert "url(" not in page.text
        assert "@import" not in page.text
        assert all(page.alts)


def test_links_lead_to_pages_and_clusters_that_exist() -> None:
    sheets = sheets_of(random_order(60).tree.cut(30))
    pages = read_pages(sheets)
    assert len(pages) == 3
    targets = {
        f"{page_stem(i)}.html#{anchor}" for i, page in enumerate(pages) for anchor in page.anchors
    }
    targets |= {f"{page_stem(i)}{suffix}" for i in range(3) for suffix in (".html", ".png")}
    for index, page in enumerate(pages):
        own = {"tree.png"} if index == 0 else set()
        assert set(page.references) <= targets | own
        for i in range(3):
            assert f"{page_stem(i)}.html" in page.references


def test_the_first_page_names_the_largest_clusters() -> None:
    prior = random_order(60).tree.cut(20)
    first, *others = read_pages(sheets_of(prior))
    linked = [r.split("#cluster-")[1] for r in first.references if "#cluster-" in r]
    sizes = prior.sizes[[int(number) for number in linked]]
    assert sizes.tolist() == sorted(prior.sizes[prior.sizes > 1], reverse=True)[:12]
    assert not any("#" in reference for page in others for reference in page.references)


def test_single_codes_are_folded_away_unless_there_is_nothing_else() -> None:
    (mixed,) = read_pages(sheets_of(random_order(60).tree.cut(30), 100))
    prior = random_order(60).tree.cut(30)
    assert {p.code for p in mixed.patches if p.folded} == set(
        np.flatnonzero(prior.sizes[prior.labels] == 1).tolist()
    )
    (flat,) = read_pages(sheets_of(ClusterMap.identity(60), 100))
    assert not any(patch.folded for patch in flat.patches)


def test_words_are_shown_as_they_are_written() -> None:
    first, second = read_pages(sheets_of(random_order(60).tree.cut(30), 40))
    assert "Codes & <clusters>" in first.words
    assert "Codes & <clusters>, page 2" in second.words
    assert "60 > 30" in first.words
    assert "60 > 30" not in second.words
    assert 'a "tree"' in first.alts


def test_a_cluster_that_is_no_branch_has_no_height() -> None:
    order = random_order(60)
    labels = np.arange(60)
    labels[order.codes[-1]] = labels[order.codes[0]]
    (page,) = read_pages(sheets_of(ClusterMap.from_labels(labels), 100))
    assert "2 codes, no branch" in page.words
    labels = order.tree.cut(59).labels
    (page,) = read_pages(sheets_of(ClusterMap.from_labels(labels), 100))
    assert f"2 codes, height {order.tree.heights[0]:.3f}" in page.words
