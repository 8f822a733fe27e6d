from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from masc_core.arrays import FloatArray
from masc_core.clustering import METHODS
from masc_core.errors import ArtifactError, ConfigError
from masc_core.io.files import TEMPORARY_PREFIX
from masc_core.models.gpt import GPT
from masc_core.prior import ClusterMap
from tests.prior_trees import random_tree
from tests.tiny_bundle import NUM_CODES, save_bundle, save_tiny_bundle, tiny_card, tiny_parts
from tests.training.stage_configs import prior_config
from tests.training.studies.atlas_reader import AtlasReader
from training.config import load_config
from training.stages.configs import ShowConfig
from training.stages.prior import build_prior
from training.studies.show import ShowInputs, show_prior

SHIPPED = Path(__file__).parents[3] / "models" / "cifar10" / "1"
FILES = {"atlas.html", "atlas.png", "dendrogram.png", "sizes.png", ".lock"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_tiny_bundle(root)
    return root / "tiny" / "1"


@pytest.fixture(scope="module")
def pictures(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle as it is shown; not to be written to."""
    out = tmp_path_factory.mktemp("pictures")
    show_prior(bundle_config(bundle, out))
    return out


def bundle_config(bundle: Path, out: Path, **changes: object) -> ShowConfig:
    values: dict[str, object] = {"tokenizer": bundle, "out": out, "leaves": 8, "shuffles": 1}
    return ShowConfig.model_validate(values | changes)


def run_config(prepared: Path, out: Path, **changes: object) -> ShowConfig:
    tokenizer = prepared / "tokenizer" / "tokenizer.safetensors"
    return bundle_config(tokenizer, out, **{"prior": prepared / "prior"} | changes)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shows_the_prior_of_a_run(prepared: Path, tmp_path: Path) -> None:
    shown = show_prior(run_config(prepared, tmp_path / "a"))
    assert (shown.num_codes, shown.num_clusters) == (32, 16)
    assert shown.pages == (tmp_path / "a" / "atlas.html",)
    assert names(tmp_path / "a") == FILES
    page = AtlasReader(shown.pages[0].read_text("utf-8"))
    assert sorted(patch.code for patch in page.patches) == list(range(32))
    assert "read from its file; 16 of the clusters are branches of it" in page.words
    for name in page.references:
        assert (tmp_path / "a" / name.split("#")[0]).is_file()


def test_shows_a_bundle_which_has_no_encoder_and_no_tree(pictures: Path) -> None:
    page = AtlasReader((pictures / "atlas.html").read_text("utf-8"))
    assert f"{NUM_CODES:,}" in page.words
    assert "Codebook of tiny 1" in page.words
    assert any(word.startswith("built over the codebook") for word in page.words)


def test_shows_the_shipped_model(tmp_path: Path) -> None:
    shown = show_prior(bundle_config(SHIPPED, tmp_path, leaves=32))
    assert (shown.num_codes, shown.num_clusters) == (2048, 1024)
    page = AtlasReader(shown.pages[0].read_text("utf-8"))
    assert sorted(patch.code for patch in page.patches) == list(range(2048))


def test_a_prior_of_ones_own_in_place_of_the_bundles(bundle: Path, tmp_path: Path) -> None:
    ClusterMap.identity(NUM_CODES).save(tmp_path / "flat.npz")
    config = bundle_config(bundle, tmp_path / "out", prior=tmp_path / "flat.npz")
    assert show_prior(config).num_clusters == NUM_CODES


def test_a_flat_bundle_shows_the_partition_of_its_training(tmp_path: Path) -> None:
    parts, chunks = tiny_parts(), ClusterMap.from_labels(np.arange(NUM_CODES) // 8)
    model = GPT(replace(parts.transformer.config, vocab_size=NUM_CODES)).eval()
    flat = replace(
        parts, transformer=model, prior=ClusterMap.identity(NUM_CODES), partitions=[chunks]
    )
    bundle = tmp_path / "models" / "tiny" / "1"
    save_bundle(bundle, tiny_card(), flat)
    shown = show_prior(bundle_config(bundle, tmp_path / "out"))
    assert shown.num_clusters == chunks.num_clusters


@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_prior_can_be_shown(prepared: Path, tmp_path: Path, method: str) -> None:
    clusters = 32 if method == "identity" else 8
    run = prior_config(prepared, method=method, num_clusters=clusters, out=tmp_path / "prior")
    build_prior(run)
    config = run_config(prepared, tmp_path / "out", prior=tmp_path / "prior")
    assert show_prior(config).num_clusters == clusters


def test_many_codes_are_several_pages(bundle: Path, tmp_path: Path) -> None:
    shown = show_prior(bundle_config(bundle, tmp_path), codes_per_sheet=10)
    pages = [AtlasReader(page.read_text("utf-8")) for page in shown.pages]
    assert len(pages) > 3
    codes = [patch.code for page in pages for patch in page.patches]
    assert sorted(codes) == list(range(NUM_CODES))
    assert {f"atlas-{i}.png" for i in range(2, len(pages) + 1)} < names(tmp_path)


def test_the_same_again_is_the_same_bytes(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    show_prior(bundle_config(bundle, tmp_path / "again"))
    show_prior(bundle_config(bundle, tmp_path / "other", seed=1))
    assert contents(tmp_path / "again") == contents(pictures)
    assert contents(tmp_path / "other") != contents(pictures)


def test_raw_rows_make_another_tree(bundle: Path, tmp_path: Path) -> None:
    def heights(*, raw_rows: bool) -> FloatArray:
        inputs = ShowInputs(bundle_config(bundle, tmp_path, raw_rows=raw_rows))
        inputs.model.quantize.embedding.weight.data *= torch.arange(1, NUM_CODES + 1)[:, None]
        return inputs.tree().heights

    normalised, raw = heights(raw_rows=False), heights(raw_rows=True)
    assert normalised.max() <= 2
    assert raw.max() > 2


def test_a_tokenizer_alone_has_no_prior(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^prior: only a bundle brings one"):
        show_prior(run_config(prepared, tmp_path / "out", prior=None))
    assert not (tmp_path / "out").exists()


def test_a_prior_over_other_codes_is_named(prepared: Path, tmp_path: Path) -> None:
    ClusterMap.identity(31).save(tmp_path / "prior.npz")
    config = run_config(prepared, tmp_path / "out", prior=tmp_path)
    with pytest.raises(ConfigError, match=r"^prior: is over 31 codes, the tokenizer has 32"):
        show_prior(config)
    ClusterMap.identity(32).save(tmp_path / "prior.npz")
    random_tree(33).save(tmp_path / "tree.npz")
    with pytest.raises(ConfigError, match=r"^prior: tree\.npz is over 33 codes"):
        show_prior(config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["prior.npz", "tree.npz"])
@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_damaged_files_are_named(prepared: Path, tmp_path: Path, name: str, damage: str) -> None:
    for part in ("prior.npz", "tree.npz"):
        (tmp_path / part).write_bytes((prepared / "prior" / part).read_bytes())
    whole = (tmp_path / name).read_bytes()
    damaged = {"truncated": whole[: len(whole) // 2], "text": b"not an archive", "empty": b""}
    (tmp_path / name).write_bytes(damaged[damage])
    with pytest.raises(ArtifactError, match=name):
        show_prior(run_config(prepared, tmp_path / "out", prior=tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("leaves", 1), ("leaves", 513), ("shuffles", 0), ("seed", -1)]
)
def test_impossible_values_are_named(tmp_path: Path, key: str, value: int) -> None:
    flags = {"tokenizer": tmp_path, "out": tmp_path, key: value}
    with pytest.raises(ConfigError, match=f"^{key}: "):
        load_config(ShowConfig, None, flags)


def test_missing_files_are_named(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere"):
        show_prior(run_config(prepared, tmp_path / "out", prior=tmp_path / "nowhere"))
    with pytest.raises(ArtifactError, match=r"none\.safetensors"):
        show_prior(run_config(prepared, tmp_path / "out", tokenizer=tmp_path / "none.safetensors"))
    with pytest.raises(ArtifactError, match=r"tokenizer\.safetensors"):
        show_prior(run_config(prepared, tmp_path / "out", tokenizer=tmp_path))


def test_a_folder_that_cannot_be_made(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="file: cannot be written"):
        show_prior(bundle_config(bundle, tmp_path / "file"))


def test_a_file_that_cannot_be_replaced(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "atlas.png").mkdir()
    with pytest.raises(ArtifactError, match=r"atlas\.png: cannot be written"):
        show_prior(bundle_config(bundle, tmp_path))
    assert not any(name.startswith(TEMPORARY_PREFIX) for name in names(tmp_path))


@pytest.mark.parametrize("when", ["codes", "tree", "pictures"])
def test_interrupted_it_leaves_what_was_there(
    bundle: Path, pictures: Path, tmp_path: Path, when: str
) -> None:
    shutil.copytree(pictures, tmp_path, dirs_exist_ok=True)

    def interrupt(step: int, total: int, text: str) -> None:
        if when in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        show_prior(bundle_config(bundle, tmp_path, seed=1), interrupt)
    assert contents(tmp_path) == contents(pictures)
