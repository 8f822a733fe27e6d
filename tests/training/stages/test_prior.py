from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from masc_core.clustering import METHODS
from masc_core.clustering.methods import cluster_codes
from masc_core.errors import ArtifactError, ConfigError
from masc_core.models.weights import load_tokenizer, save_model
from masc_core.prior import ClusterMap
from masc_core.tree import LINKAGES, Linkage, SemanticTree, build_tree
from tests.tiny_bundle import save_tiny_bundle, tiny_parts
from tests.training.stage_configs import prior_config
from training.loop.run_dir import lock_folder
from training.stages.configs import PriorConfig
from training.stages.prior import build_prior

ROWS = np.random.default_rng(0).normal(size=(24, 4))


@pytest.fixture
def codebook(tmp_path: Path) -> Path:
    np.save(tmp_path / "codebook.npy", ROWS)
    return tmp_path / "codebook.npy"


def config_for(tokenizer: Path, **changes: object) -> PriorConfig:
    values = {"tokenizer": tokenizer, "num_clusters": 6, "out": tokenizer.parent / "prior"}
    return PriorConfig.model_validate(values | changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_writes_the_tree_and_its_cut(prepared: Path) -> None:
    prior = ClusterMap.load(prepared / "prior" / "prior.npz")
    tree = SemanticTree.load(prepared / "prior" / "tree.npz")
    assert prior.num_clusters == 16
    assert np.array_equal(tree.cut(16).labels, prior.labels)
    model = load_tokenizer(prepared / "tokenizer" / "tokenizer.safetensors")
    rows = model.quantize.codebook().detach().numpy()
    assert np.allclose(build_tree(rows).heights, tree.heights)


def test_raw_rows_are_an_option(prepared: Path, tmp_path: Path) -> None:
    model = load_tokenizer(prepared / "tokenizer" / "tokenizer.safetensors")
    weight = model.quantize.embedding.weight
    weight.data *= torch.arange(1, len(weight) + 1)[:, None]
    save_model(tmp_path / "t.safetensors", model)
    config = prior_config(prepared, tokenizer=tmp_path / "t.safetensors", out=tmp_path / "p")
    normalised = build_prior(config)
    raw = build_prior(config.model_copy(update={"raw_rows": True}))
    assert np.array_equal(normalised.labels, ClusterMap.load(prepared / "prior/prior.npz").labels)
    expected = build_tree(weight.detach().numpy().astype(float)).cut(16)
    assert np.array_equal(raw.labels, expected.labels)
    assert not np.array_equal(raw.labels, normalised.labels)


@pytest.mark.parametrize("raw", [False, True])
def test_a_bundle_gives_the_tree_of_its_codebook(tmp_path: Path, *, raw: bool) -> None:
    save_tiny_bundle(tmp_path)
    quantizer = tiny_parts().tokenizer.quantize
    quantizer.embedding.weight.data = quantizer.embedding.weight.data.half().float()
    rows = quantizer.embedding.weight if raw else quantizer.codebook()
    prior = build_prior(config_for(tmp_path / "tiny" / "1", out=tmp_path / "p", raw_rows=raw))
    tree = SemanticTree.load(tmp_path / "p" / "tree.npz")
    expected = build_tree(rows)
    assert np.array_equal(tree.linkage, expected.linkage)
    assert np.array_equal(prior.labels, expected.cut(6).labels)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_exactly_k_clusters_and_its_tree(codebook: Path, method: str) -> None:
    count = 24 if method == "identity" else 6
    config = config_for(codebook, method=method, num_clusters=count, seed=3)
    reports: list[tuple[int, int, str]] = []
    prior = build_prior(config, lambda *report: reports.append(report))
    expected = cluster_codes(ROWS, count, method, seed=3)
    assert prior.num_clusters == count
    assert np.array_equal(prior.labels, expected.labels)
    assert np.array_equal(ClusterMap.load(config.out / "prior.npz").labels, expected.labels)
    linkage = "average" if method == "leaf-order" else method
    has_tree = linkage in LINKAGES
    assert set(contents(config.out)) == ({"prior.npz", "tree.npz"} if has_tree else {"prior.npz"})
    if has_tree:
        tree = SemanticTree.load(config.out / "tree.npz")
        assert np.array_equal(tree.linkage, build_tree(ROWS, cast("Linkage", linkage)).linkage)
    # The progress begins at once and ends at its total.
    assert reports[0] == (0, 1, method)
    assert all(0 <= step <= total for step, total, _ in reports)
    assert reports[-1][:2] == (1, 1)
    assert f"largest cluster {prior.sizes.max()}" in reports[-1][2]
    if method in {"average", "single"}:
        assert any(step == total > 1 for step, total, _ in reports)


def test_the_tree_of_another_method_goes(codebook: Path) -> None:
    config = config_for(codebook)
    build_prior(config)
    assert (config.out / "tree.npz").exists()
    build_prior(config_for(codebook, method="random"))
    assert set(contents(config.out)) == {"prior.npz"}


def test_the_prior_opens_with_plain_numpy(codebook: Path) -> None:
    prior = build_prior(config_for(codebook))
    with np.load(codebook.parent / "prior" / "prior.npz", allow_pickle=False) as public:
        assert set(public) == {"mapping", "k", "n"}
        mapping, k, n = public["mapping"], public["k"], public["n"]
    assert (mapping.dtype, mapping.shape) == (np.int64, (24,))
    assert (int(k), int(n)) == (6, 24)
    assert np.array_equal(mapping, prior.labels)
    first = [int(np.flatnonzero(mapping == cluster)[0]) for cluster in range(6)]
    assert first == sorted(first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_clusters": 25}, "num_clusters: 25 of 24 codes"),
        ({"num_clusters": 25, "method": "random"}, "num_clusters: 25 of 24 codes"),
        ({"num_clusters": 5, "method": "balanced-kmeans"}, "num_clusters: .* divides the 24"),
        ({"num_clusters": 5, "method": "leaf-order"}, "num_clusters: .* divides the 24"),
        ({"num_clusters": 5, "method": "identity"}, "num_clusters: identity makes 24 clusters"),
        ({"device": "tpu"}, "device: 'tpu'"),
        ({"device": "cuda:99"}, "device: 'cuda:99' is not on this machine"),
        ({"out": "/proc/masc"}, "/proc/masc: cannot be written"),
    ],
)
def test_what_cannot_be_built(codebook: Path, changes: dict[str, object], message: str) -> None:
    config = config_for(codebook, **changes)
    with pytest.raises(ConfigError, match=message):
        build_prior(config)
    assert not config.out.exists() or not contents(config.out)


@pytest.mark.parametrize(
    ("key", "value"), [("num_clusters", 0), ("method", "median"), ("seed", -1), ("seed", 1 << 32)]
)
def test_values_out_of_range(codebook: Path, key: str, value: object) -> None:
    with pytest.raises(ValidationError) as refused:
        config_for(codebook, **{key: value})
    assert [error["loc"] for error in refused.value.errors()] == [(key,)]


@pytest.mark.parametrize("method", ["average", "kmeans"])
def test_rows_that_cannot_be_clustered_name_their_file(codebook: Path, method: str) -> None:
    rows = ROWS.copy()
    rows[3, 1] = np.nan
    np.save(codebook, rows)
    config = config_for(codebook, method=method)
    with pytest.raises(ArtifactError, match=r"codebook\.npy: codebook row 3 has a NaN"):
        build_prior(config)
    assert not config.out.exists()


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_file_in_the_place_of_the_folder(codebook: Path, inside: str) -> None:
    before = codebook.read_bytes()
    with pytest.raises(ConfigError, match=r"codebook\.npy.*: cannot be written"):
        build_prior(config_for(codebook, out=codebook / inside))
    assert codebook.read_bytes() == before


@pytest.mark.parametrize("method", ["average", "random"])
def test_a_folder_in_the_place_of_the_prior(codebook: Path, method: str) -> None:
    config = config_for(codebook, method=method)
    (config.out / "prior.npz").mkdir(parents=True)
    with pytest.raises(ArtifactError, match=r"prior\.npz: cannot be written: Is a directory"):
        build_prior(config)
    assert not list(config.out.glob(".tmp-*"))


def test_a_tree_stays_until_another_prior_is_there(codebook: Path) -> None:
    config = config_for(codebook)
    build_prior(config)
    tree = (config.out / "tree.npz").read_bytes()
    (config.out / "prior.npz").unlink()
    (config.out / "prior.npz").mkdir()
    with pytest.raises(ArtifactError):
        build_prior(config_for(codebook, method="random"))
    assert (config.out / "tree.npz").read_bytes() == tree


def test_a_folder_in_use(codebook: Path) -> None:
    config = config_for(codebook)
    with lock_folder(config.out), pytest.raises(ConfigError, match="another run is using"):
        build_prior(config)
    build_prior(config)


def test_too_little_memory(codebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*_: object) -> SemanticTree:
        np.empty(1 << 58)
        raise AssertionError("two exabytes were there")

    monkeypatch.setattr("training.stages.prior.build_tree", allocate)
    with pytest.raises(ConfigError, match="method: complete of 24 codes does not fit"):
        build_prior(config_for(codebook, method="complete"))


@pytest.mark.parametrize("when", [1, 2])  # the last report comes when all is written
@pytest.mark.parametrize("rebuilt", [False, True])
def test_an_interrupt_leaves_what_was_there(codebook: Path, when: int, *, rebuilt: bool) -> None:
    config = config_for(codebook)
    config.out.mkdir()
    if rebuilt:
        build_prior(config_for(codebook, num_clusters=4, method="complete"))
    before, calls = contents(config.out), 0

    def interrupt(step: int, total: int, text: str) -> None:
        nonlocal calls
        calls += 1
        if calls == when:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_prior(config, interrupt)
    assert contents(config.out) == before
    build_prior(config)  # the lock was let go
