from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from masc_core.bundle.codebook_view import CodebookFiles
from masc_core.bundle.manifest import PATCHES_FILE, PRIOR_FILE, SAMPLES_FILE, TREE_FILE
from masc_core.prior import ClusterMap
from masc_core.semantic_tree import SemanticTree
from server.codebook_view.route import MAX_ANCESTORS
from tests.hostile_files import IRREGULAR, memory_below, packed_zeros, sparse, write_prior
from tests.server.pictured_model import (
    NUM_CODES,
    PATCHES,
    PRIOR,
    TREE,
    add_files,
    samples,
    write_pictured,
)
from tests.server.service import CLASS_NAMES, NUM_CLUSTERS, Service, assert_problem, write_model

ROOT = 2 * NUM_CODES - 2


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("pictured")
    write_pictured(root / "models")
    with Service(root) as running:
        yield running


def get(service: Service, path: str) -> Any:
    response = service.get(f"/models/tiny/codebook{path}")
    assert response.status_code == 200, response.text
    return response.json()


def test_the_summary_says_what_there_is(pictured: Service) -> None:
    summary = get(pictured, "")
    sizes = {entry["size"]: entry["clusters"] for entry in summary.pop("sizes")}
    assert sizes == {n: c for n, c in enumerate(np.bincount(PRIOR.sizes)) if c}
    assert summary == {
        "model": "tiny",
        "version": "v1",
        "num_codes": NUM_CODES,
        "num_clusters": NUM_CLUSTERS,
        "num_branches": NUM_CLUSTERS,
        "cut_height": TREE.heights[NUM_CODES - NUM_CLUSTERS - 1],
        "height": TREE.heights[-1],
        "root": ROOT,
        "patches": {"side": 4, "columns": 6},
    }


def test_patches_come_as_they_were_published(pictured: Service) -> None:
    response = pictured.get("/models/tiny/codebook/patches")
    assert response.headers["content-type"] == "image/webp"
    sheet = np.asarray(Image.open(io.BytesIO(response.content)).convert("RGB"))
    assert (sheet[4:8, 8:12] == PATCHES[8]).all()
    etag = response.headers["etag"]
    again = pictured.get("/models/tiny/codebook/patches", **{"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")


PICTURES = ("/models/tiny/codebook/patches", "/models/tiny/classes/0/thumbnail")


@pytest.mark.parametrize("path", PICTURES)
def test_a_picture_is_kept_only_under_its_version(pictured: Service, path: str) -> None:
    assert pictured.get(path).headers["cache-control"] == "no-cache"
    named = pictured.get(f"{path}?v=v1")
    assert named.headers["cache-control"] == "max-age=3600"
    assert named.content == pictured.get(path).content


@pytest.mark.parametrize(
    "path",
    [
        *PICTURES,
        "/models/tiny/codebook",
        "/models/tiny/codebook/clusters",
        "/models/tiny/codebook/clusters/0",
        "/models/tiny/codebook/nodes/40",
    ],
)
def test_another_version_than_the_one_meant_is_refused(tmp_path: Path, path: str) -> None:
    write_pictured(tmp_path / "models")
    with Service(tmp_path) as service:
        assert service.get(f"{path}?v=v1").status_code == 200
        write_pictured(service.root, patches=255 - PATCHES, version="v2")
        service.announce(version="v2")
        refused = service.get(f"{path}?v=v1")
        document = assert_problem(refused, 409)
        assert document["detail"] == "tiny is served in version v2 now"
        assert "cache-control" not in refused.headers
        assert service.get(f"{path}?v=v2").status_code == 200
        assert service.get(path).status_code == 200


def test_clusters_come_page_by_page(pictured: Service) -> None:
    pages = [get(pictured, f"/clusters?offset={offset}&limit=5") for offset in range(0, 20, 5)]
    assert [page["total"] for page in pages] == [NUM_CLUSTERS] * 4
    assert [len(page["clusters"]) for page in pages] == [5, 5, 5, 1]
    ids = [cluster["id"] for page in pages for cluster in page["clusters"]]
    assert sorted(ids) == list(range(NUM_CLUSTERS))
    largest = get(pictured, "/clusters?sort=size&least=2&limit=1")
    assert largest["total"] == (PRIOR.sizes >= 2).sum()
    (cluster,) = largest["clusters"]
    assert cluster["size"] == PRIOR.sizes.max() == len(cluster["codes"])


def test_a_cluster_has_all_its_codes_and_merges(pictured: Service) -> None:
    number = int(PRIOR.sizes.argmax())
    cluster = get(pictured, f"/clusters/{number}")
    assert sorted(cluster["codes"]) == np.flatnonzero(PRIOR.labels == number).tolist()
    assert len(cluster["merges"]) == cluster["size"] - 1
    assert cluster["merges"][0]["node"] == cluster["node"]
    assert cluster["merges"][0]["height"] == cluster["height"]
    single = get(pictured, f"/clusters/{int(PRIOR.sizes.argmin())}")
    assert (single["size"], single["merges"], single["height"]) == (1, [], 0.0)


def test_the_tree_can_be_walked_from_the_root_to_a_code(pictured: Service) -> None:
    node, depth = ROOT, 0
    while (branch := get(pictured, f"/nodes/{node}"))["children"]:
        assert [upper["node"] for upper in branch["above"]][-1:] == [ROOT][: min(1, depth)]
        assert sum(child["size"] for child in branch["children"]) == branch["size"]
        assert all(child["height"] <= branch["height"] for child in branch["children"])
        node, depth = branch["children"][0]["node"], depth + 1
    assert branch["codes"] == [node]
    assert branch["cluster"] == PRIOR.labels[node]
    assert len(branch["above"]) == branch["num_above"] == depth


def test_clusters_that_are_no_branches_have_no_height(tmp_path: Path) -> None:
    prior = ClusterMap.from_labels(np.arange(NUM_CODES) % NUM_CLUSTERS)
    write_pictured(tmp_path / "models", prior)
    with Service(tmp_path) as service:
        assert get(service, "")["cut_height"] is None
        cluster = get(service, "/clusters/1")
        assert (cluster["node"], cluster["height"], cluster["merges"]) == (None, None, [])
        assert cluster["codes"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/clusters?limit=0", 422),
        ("/clusters?limit=100000", 422),
        ("/clusters?offset=-1", 422),
        ("/clusters?sort=colour", 422),
        ("/clusters/-1", 422),
        (f"/clusters/{NUM_CLUSTERS}", 404),
        (f"/nodes/{ROOT + 1}", 404),
        ("/nodes/x", 422),
    ],
)
def test_what_is_not_there_is_said(pictured: Service, path: str, status: int) -> None:
    response = pictured.get(f"/models/tiny/codebook{path}")
    assert response.status_code == status
    assert response.json()["detail"]


def test_far_pages_are_empty(pictured: Service) -> None:
    assert get(pictured, f"/clusters?offset={2**63}")["clusters"] == []


def test_thumbnails_are_those_of_the_samples(pictured: Service) -> None:
    for label in range(len(CLASS_NAMES)):
        response = pictured.get(f"/models/tiny/classes/{label}/thumbnail")
        assert response.headers["content-type"] == "image/webp"
        with Image.open(io.BytesIO(response.content)) as image:
            assert image.size == (64, 64)
    assert_problem(pictured.get("/models/tiny/classes/6/thumbnail"), 404, "class_id")
    assert_problem(pictured.get("/models/huge/classes/0/thumbnail"), 404, "model")


def test_the_list_of_models_says_what_can_be_seen(pictured: Service, service: Service) -> None:
    for each, expected in ((pictured, True), (service, False)):
        (model,) = each.get("/models").json()["models"]
        assert (model["has_thumbnails"], model["has_codebook"]) == (expected, expected)


def test_samples_of_some_classes_are_no_thumbnails(tmp_path: Path) -> None:
    write_pictured(tmp_path / "models", class_names=[f"class {i}" for i in range(100)])
    with Service(tmp_path) as service:
        (model,) = service.get("/models").json()["models"]
        assert (model["has_thumbnails"], model["has_codebook"]) == (False, True)
        assert_problem(service.get("/models/tiny/classes/0/thumbnail"), 404)


def test_few_of_the_nodes_over_a_code_are_told(tmp_path: Path) -> None:
    steps = np.arange(NUM_CODES - 1)
    before = np.where(steps == 0, 1, NUM_CODES + steps - 1)
    after = np.where(steps == 0, 0, steps + 1)
    chain = SemanticTree(
        np.stack(
            [np.minimum(before, after), np.maximum(before, after), 1.0 + steps, steps + 2.0], 1
        )
    )
    manifest = write_pictured(tmp_path / "models", chain.cut(NUM_CLUSTERS))
    folder = tmp_path / "models" / "tiny" / "v1"
    add_files(folder, manifest, CodebookFiles(chain, PATCHES).encode())
    with Service(tmp_path) as service:
        branch = get(service, "/nodes/0")
        assert len(branch["above"]) == MAX_ANCESTORS
        assert branch["num_above"] == NUM_CODES - 1
        assert [upper["size"] for upper in branch["above"]] == list(range(2, MAX_ANCESTORS + 2))


def test_a_model_without_pictures_says_so(service: Service) -> None:
    for path in ("codebook", "codebook/clusters", "codebook/nodes/1", "codebook/patches"):
        document = assert_problem(service.get(f"/models/tiny/{path}"), 404)
        assert document["detail"] == "tiny v1 was published without pictures of its codebook"
    document = assert_problem(service.get("/models/tiny/classes/0/thumbnail"), 404)
    assert document["detail"] == "tiny v1 was published without samples"


def test_samples_that_are_no_sheet_give_no_thumbnails(tmp_path: Path) -> None:
    manifest = write_pictured(tmp_path / "models")
    folder = tmp_path / "models" / "tiny" / "v1"
    add_files(folder, manifest, {SAMPLES_FILE: b"a picture"})
    with Service(tmp_path, working=False) as service:
        assert_problem(service.get("/models/tiny/classes/0/thumbnail"), 404)


@pytest.mark.parametrize("name", [TREE_FILE, PATCHES_FILE])
def test_a_damaged_file_is_the_operators_business(tmp_path: Path, name: str) -> None:
    manifest = write_pictured(tmp_path / "models")
    folder = tmp_path / "models" / "tiny" / "v1"
    (folder / name).write_bytes(b"")
    with Service(tmp_path, working=False) as service:
        assert_problem(service.get("/models/tiny/codebook"), 500)
        add_files(folder, manifest, {name: b"not that"})
        assert_problem(service.get("/models/tiny/codebook"), 500)


def test_another_version_shows_its_own_codebook(tmp_path: Path) -> None:
    write_pictured(tmp_path / "models")
    with Service(tmp_path, working=False) as service:
        assert get(service, "")["version"] == "v1"
        write_model(service.root, version="v2")
        assert_problem(service.get("/models/tiny/codebook"), 404)


FILES = (PRIOR_FILE, TREE_FILE, PATCHES_FILE, SAMPLES_FILE)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", IRREGULAR)
def test_what_is_no_file_keeps_nobody_waiting(tmp_path: Path, name: str, kind: str) -> None:
    write_pictured(tmp_path / "models")
    path = tmp_path / "models" / "tiny" / "v1" / name
    path.unlink()
    IRREGULAR[kind](path)
    with Service(tmp_path) as service:
        (model,) = service.get("/models").json()["models"]
        assert model["has_thumbnails"] == (name != SAMPLES_FILE)
        asked = "classes/0/thumbnail" if name == SAMPLES_FILE else "codebook"
        assert_problem(service.get(f"/models/tiny/{asked}"), 404 if name == SAMPLES_FILE else 500)
        assert service.get("/healthz").status_code == 200


@pytest.mark.parametrize("name", FILES)
def test_a_large_file_takes_no_memory(tmp_path: Path, name: str) -> None:
    manifest = write_pictured(tmp_path / "models")
    path = tmp_path / "models" / "tiny" / "v1" / name
    if name == PRIOR_FILE:
        write_prior(path, packed_zeros("(100000000,)", size=10**8), n=10**8)
    elif name == TREE_FILE:
        path.write_bytes(packed_zeros("(1000000000, 4)", "<f8", size=1000))
    elif name == SAMPLES_FILE:
        sparse(path, 3_000_000_000)
        with path.open("r+b") as file:  # the head is that of a sheet
            file.write(samples()[:1000])
    else:
        sparse(path, 3_000_000_000)
    if path.stat().st_size < 1 << 20:
        add_files(path.parent, manifest, {name: path.read_bytes()})
    with Service(tmp_path) as service, memory_below(32 << 20):
        service.get("/models")
        asked = "classes/0/thumbnail" if name == SAMPLES_FILE else "codebook"
        assert_problem(service.get(f"/models/tiny/{asked}"), 404 if name == SAMPLES_FILE else 500)


def test_a_bomb_of_pixels_is_no_sheet(tmp_path: Path) -> None:
    manifest = write_pictured(tmp_path / "models")
    folder = tmp_path / "models" / "tiny" / "v1"
    bomb = samples()
    bomb = bomb[:16] + (100_000).to_bytes(4, "big") * 2 + bomb[24:]
    add_files(folder, manifest, {SAMPLES_FILE: bomb})
    with Service(tmp_path) as service:
        (model,) = service.get("/models").json()["models"]
        assert not model["has_thumbnails"]
        assert_problem(service.get("/models/tiny/classes/0/thumbnail"), 404)
