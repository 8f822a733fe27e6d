from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from masc_core.bundle.manifest import read_manifest
from masc_core.bundle.read import load_bundle
from masc_core.clustering.centroid_linkage import centroid_linkage
from masc_core.clustering.methods import cluster_codes
from masc_core.errors import ArtifactError, ConfigError, MascError
from masc_core.models.weights import load_tokenizer, save_model
from masc_core.prior import ClusterMap
from masc_core.tree import Linkage, SemanticTree, build_tree
from tests.tiny_bundle import save_bundle, tiny_card, tiny_parts
from tests.tiny_images import make_images
from tests.training.studies.comparisons import compare_config
from training.data.code_cache import CodeCache, read_index
from training.data.codebook_source import TrainedTokenizer
from training.data.images import open_images
from training.data.prior_source import prior_file, read_prior
from training.metrics.cluster_bits import cluster_bits, count_cached_pairs, count_pairs
from training.metrics.semantic_replacement import encode_images
from training.stages.configs import CANDIDATES
from training.studies import compare
from training.studies.compare import CandidateBuilder, CompareInputs, compare_priors

ROWS = np.random.default_rng(0).normal(size=(24, 4))
FILES = {
    *("priors.json", "priors.md", "sizes.png", "rate_distortion.png"),
    *(
        "average-8.npz",
        "kmeans++-8.npz",
        "balanced-kmeans-8.npz",
        "average-5.npz",
        "kmeans++-5.npz",
    ),
}


@pytest.fixture(scope="module")
def compared(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared") / "priors"
    given = prepared / "prior" / "prior.npz"
    compare_priors(compare_config(prepared, out=out, priors=(given,)))
    return out


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != ".lock"}


def test_writes_results_pictures_and_priors(prepared: Path, compared: Path) -> None:
    assert names(compared) == FILES
    content = json.loads((compared / "priors.json").read_text())
    given = str(prepared / "prior" / "prior.npz")
    measured = [(prior["method"], prior["num_clusters"]) for prior in content["priors"]]
    assert measured == [
        *(("average", 8), ("kmeans++", 8), ("balanced-kmeans", 8), ("average", 5), ("kmeans++", 5)),
        (given, 16),
    ]
    assert [(p["method"], p["num_clusters"]) for p in content["impossible"]] == [
        ("balanced-kmeans", 5)
    ]
    for prior in content["priors"]:
        path = compared / prior["file"]  # an absolute one stays what it is
        assert ClusterMap.load(path).num_clusters == prior["num_clusters"]
    assert content["provenance"]["num_images"] == 12
    assert content["provenance"]["fitted_positions"] == 36 * 2 * 16
    assert list(content["provenance"]["priors_sha256"]) == [given]


def test_models_are_fitted_to_the_cache_and_measured_on_the_images(
    prepared: Path, compared: Path
) -> None:
    content = json.loads((compared / "priors.json").read_text())
    model = load_tokenizer(prepared / "tokenizer" / "tokenizer.safetensors")
    fitted = count_cached_pairs(CodeCache.open(prepared / "codes-train"))
    pixels = open_images(prepared / "val").read(16).pixels
    held_out = count_pairs(encode_images(model, pixels), 32)
    bits = cluster_bits(ClusterMap.load(compared / "average-8.npz"), fitted, held_out)
    assert content["priors"][0]["bits"]["conditional"] == pytest.approx(bits.conditional)
    assert content["priors"][0]["bits"]["frequency"] == pytest.approx(bits.frequency)


def test_the_same_inputs_give_the_same_files(
    prepared: Path, compared: Path, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in compared.iterdir()}
    given = prepared / "prior" / "prior.npz"
    compare_priors(compare_config(prepared, out=compared, priors=(given,)))
    assert {path.name: path.read_bytes() for path in compared.iterdir()} == before


def test_half_of_the_images_serves_where_there_is_no_cache(prepared: Path, tmp_path: Path) -> None:
    results = compare_priors(compare_config(prepared, out=tmp_path / "p", codes=None))
    assert results.provenance["num_images"] == 6
    assert results.provenance["fitted_positions"] == 6 * 16
    model = load_tokenizer(prepared / "tokenizer" / "tokenizer.safetensors")
    pixels = open_images(prepared / "val").read(16).pixels
    fitted, held_out = (count_pairs(encode_images(model, pixels[i::2]), 32) for i in (1, 0))
    bits = cluster_bits(ClusterMap.load(tmp_path / "p" / "average-8.npz"), fitted, held_out)
    assert results.priors[0].bits.conditional == pytest.approx(bits.conditional)


def test_images_are_read_as_those_of_the_cache_were(prepared: Path, tmp_path: Path) -> None:
    cache = tmp_path / "codes"
    shutil.copytree(prepared / "codes-train", cache)
    index = read_index(cache).model_copy(update={"exif_orientation": False, "background": "none"})
    (cache / "index.json").write_text(index.model_dump_json())
    config = compare_config(prepared, out=tmp_path / "p", codes=cache)
    inputs = CompareInputs(config)
    options = inputs.folder.options
    assert options == inputs.config
    assert (options.exif_orientation, options.background) == (False, "none")
    with pytest.raises(ConfigError, match=r"background: .* were read with none; leave it out"):
        CompareInputs(compare_config(prepared, out=tmp_path / "p", codes=cache, background="white"))


def test_every_kind_of_prior_can_be_compared(prepared: Path, tmp_path: Path) -> None:
    given = (prepared / "prior",)  # the folder of a run
    config = compare_config(
        prepared, out=tmp_path / "p", methods=CANDIDATES, num_clusters=(8,), priors=given
    )
    results = compare_priors(config)
    assert [one.method for one in results.priors] == [
        *(one for one in CANDIDATES if one != "identity"),
        str(prepared / "prior"),
    ]
    assert [one.method for one in results.impossible] == ["identity"]
    chunks = ClusterMap.load(tmp_path / "p" / "leaf-order-8.npz")
    rows = TrainedTokenizer.open(prepared / "tokenizer").rows(raw=False)
    assert np.array_equal(chunks.labels, cluster_codes(rows, 8, "leaf-order").labels)


def test_iars_mapping_is_a_prior(prepared: Path, tmp_path: Path) -> None:
    mapping = torch.from_numpy(np.random.default_rng(0).permutation(256))
    torch.save(mapping, tmp_path / "mapping.pt")
    assert np.array_equal(
        read_prior(prior_file(tmp_path / "mapping.pt")).labels,
        ClusterMap.from_labels(mapping.numpy() // 128).labels,
    )
    config = compare_config(prepared, out=tmp_path / "p", priors=(tmp_path / "mapping.pt",))
    with pytest.raises(ConfigError, match="is over 256 codes, the tokenizer has 32"):
        compare_priors(config)
    torch.save(torch.arange(32), tmp_path / "mapping.pt")
    with pytest.raises(ConfigError, match=r"mapping\.pt: 32 codes .* masc prior import"):
        compare_priors(config)


def test_the_usual_numbers_of_clusters(prepared: Path, tmp_path: Path) -> None:
    config = compare_config(prepared, out=tmp_path / "p", num_clusters=(), methods=("average",))
    assert [prior.num_clusters for prior in compare_priors(config).priors] == [16, 8, 4]


def test_progress_reaches_its_total(prepared: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    config = compare_config(prepared, out=tmp_path / "p")
    compare_priors(config, lambda done, total, text: seen.append((done, total)))
    done = [step for step, _ in seen]
    assert done == sorted(set(done))
    assert {total for _, total in seen} == {1 + 6 + 6 * 2 * 2}
    assert done[-1] == seen[-1][1]


def test_unreadable_images_are_counted(prepared: Path, tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", per_class=3)
    (images / "disc" / "001.png").write_bytes(b"no image")
    results = compare_priors(compare_config(prepared, out=tmp_path / "p", images=images))
    assert results.provenance["num_images"] == 8
    assert results.provenance["skipped"] == [str(images / "disc" / "001.png")]
    assert "1 unreadable image skipped" in (tmp_path / "p" / "priors.md").read_text()


def test_too_few_readable_images(prepared: Path, tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", per_class=1)
    with pytest.raises(ArtifactError, match="fewer than 4 images"):
        compare_priors(compare_config(prepared, out=tmp_path / "p", images=images))


def test_an_interrupted_run_leaves_what_was_there(
    prepared: Path, compared: Path, tmp_path: Path
) -> None:
    shutil.copytree(compared, tmp_path / "p")
    before = {path.name: path.read_bytes() for path in (tmp_path / "p").iterdir()}

    def stop(done: int, total: int, text: str) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare_priors(compare_config(prepared, out=tmp_path / "p", seed=1), stop)
    assert {path.name: path.read_bytes() for path in (tmp_path / "p").iterdir()} == before


@pytest.mark.parametrize("raw", [False, True])
def test_raw_rows_are_an_option(prepared: Path, tmp_path: Path, raw: bool) -> None:
    model = load_tokenizer(prepared / "tokenizer" / "tokenizer.safetensors")
    weight = model.quantize.embedding.weight
    weight.data *= torch.arange(1, len(weight) + 1)[:, None]  # normalised rows stay as they are
    save_model(tmp_path / "t.safetensors", model)
    changes = {"tokenizer": tmp_path / "t.safetensors", "codes": None, "methods": ("average",)}
    compare_priors(compare_config(prepared, out=tmp_path / "p", raw_rows=raw, **changes))
    rows = weight if raw else model.quantize.codebook()
    expected = build_tree(rows.detach().double()).cut(8)
    assert np.array_equal(ClusterMap.load(tmp_path / "p/average-8.npz").labels, expected.labels)


def test_the_seed_changes_the_draws(prepared: Path, tmp_path: Path) -> None:
    first, second = (
        compare_priors(
            compare_config(prepared, out=tmp_path / "p", methods=("average",), seed=seed)
        ).priors[0]
        for seed in (0, 1)
    )
    assert first.quality["uniform"].psnr != second.quality["uniform"].psnr
    assert first.bits == second.bits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_clusters": (8, 33)}, "num_clusters: 33 of 32 codes"),
        ({"image_size": 18}, "image_size: must be a multiple of 4"),
        ({"image_size": 20}, "image_size: makes 25 codes an image, the code cache has 16"),
        ({"methods": ()}, "methods: there is nothing to compare"),
        ({"methods": ("identity", "balanced-kmeans"), "num_clusters": (5,)}, "methods: none is"),
        ({"images": "codes-train"}, "no class folders"),
        ({"images": "none"}, "no such folder"),
        ({"images": "train"}, "codes: are those of the images"),
        ({"tokenizer": "prior"}, "tokenizer.safetensors"),
        ({"tokenizer": "other.safetensors"}, "codes: were made by another tokenizer"),
        ({"priors": ("small.npz",)}, r"priors: .*small.npz is over 3 codes, the tokenizer has 32"),
        ({"priors": ("none.npz",)}, r"none.npz: cannot be read"),
        ({"codes": "val"}, "holds no code cache"),
    ],
)
def test_inputs_that_do_not_belong_together(
    prepared: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for path in prepared.iterdir():
        (root / path.name).symlink_to(path)
    ClusterMap.identity(3).save(root / "small.npz")
    content = bytearray((root / "tokenizer" / "tokenizer.safetensors").read_bytes())
    content[-1] ^= 1
    (root / "other.safetensors").write_bytes(content)
    for key in ("images", "tokenizer", "codes"):
        if key in changes:
            changes = changes | {key: root / str(changes[key])}
    if "priors" in changes:
        changes = changes | {"priors": (root / str(changes["priors"][0]),)}  # type: ignore[index]
    with pytest.raises(MascError, match=message):
        compare_priors(compare_config(root, **changes))
    assert not (root / "priors" / "priors.json").exists()


def test_a_bundle_serves_as_tokenizer_when_it_has_an_encoder(
    prepared: Path, tmp_path: Path
) -> None:
    changes: dict[str, object] = {"codes": None, "methods": ("average",), "num_clusters": (16,)}
    for name, with_encoder in (("whole", True), ("half", False)):
        save_bundle(tmp_path / name, tiny_card(), tiny_parts(), with_encoder=with_encoder)
    config = compare_config(prepared, out=tmp_path / "p", tokenizer=tmp_path / "whole", **changes)
    results = compare_priors(config)
    expected = read_manifest(tmp_path / "whole").tokenizer_sha256
    assert results.provenance["tokenizer_sha256"] == expected
    built = ClusterMap.load(tmp_path / "p" / "average-16.npz")
    rows = load_bundle(tmp_path / "whole").tokenizer.quantize.codebook()
    assert np.array_equal(built.labels, build_tree(rows).cut(16).labels)
    config = compare_config(prepared, out=tmp_path / "q", tokenizer=tmp_path / "half", **changes)
    with pytest.raises(ArtifactError, match="half: has no encoder"):
        compare_priors(config)


def test_unknown_methods_and_repeated_ones(prepared: Path) -> None:
    with pytest.raises(ValueError, match="no method 'median'; there are average, single"):
        compare_config(prepared, methods=("average", "median"))
    assert compare_config(prepared, num_clusters=(8, 5, 8)).num_clusters == (8, 5)
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        compare_config(prepared, num_clusters=(8, 0))


def test_an_unwritable_folder(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        compare_priors(compare_config(prepared, out=tmp_path / "file" / "p"))


@pytest.mark.parametrize("method", CANDIDATES)
def test_every_method_makes_what_it_is_named_for(method: str) -> None:
    count = 24 if method == "identity" else 6
    (candidate,) = CandidateBuilder(ROWS, seed=3).build([method], [count])
    assert candidate.prior is not None
    assert candidate.prior.num_clusters == count
    assert candidate.file == f"{method}-{count}.npz"
    if method != "average-shuffled":
        expected = cluster_codes(ROWS, count, method, seed=3)
        assert np.array_equal(candidate.prior.labels, expected.labels)


def test_shuffled_clusters_have_the_sizes_of_the_tree_but_not_its_members() -> None:
    average, shuffled = CandidateBuilder(ROWS, seed=0).build(["average", "average-shuffled"], [8])
    assert average.prior is not None
    assert shuffled.prior is not None
    assert sorted(shuffled.prior.sizes) == sorted(average.prior.sizes)
    assert not np.array_equal(shuffled.prior.labels, average.prior.labels)


def test_trees_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    merged: list[None] = []

    def counted_tree(rows: np.ndarray, linkage: Linkage) -> SemanticTree:
        built.append(linkage)
        return build_tree(rows, linkage)

    def counted_merges(rows: np.ndarray) -> np.ndarray:
        merged.append(None)
        return centroid_linkage(rows)

    monkeypatch.setattr(compare, "build_tree", counted_tree)
    monkeypatch.setattr(compare, "centroid_linkage", counted_merges)
    methods = ["average", "average-shuffled", "complete", "centroid"]
    candidates = list(CandidateBuilder(ROWS, seed=0).build(methods, [12, 6, 3]))
    assert built == ["average", "complete"]
    assert len(merged) == 1
    asked = [(c.method, c.num_clusters) for c in candidates]
    assert asked == [(method, count) for count in (12, 6, 3) for method in methods]


def test_what_a_method_cannot_make_has_a_reason() -> None:
    uneven, flat, possible = CandidateBuilder(ROWS, seed=0).build(
        ["balanced-kmeans", "identity", "average"], [5]
    )
    for candidate in (uneven, flat):
        assert candidate.prior is None
        assert "24" in candidate.reason
        assert candidate.num_clusters == 5
    assert possible.prior is not None
    assert possible.reason == ""
