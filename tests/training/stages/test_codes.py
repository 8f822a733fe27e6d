from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from masc_core.bundle.manifest import read_manifest
from masc_core.errors import ArtifactError, ConfigError
from masc_core.models.weights import load_tokenizer, save_model
from tests.tiny_bundle import save_bundle, tiny_card, tiny_parts
from tests.tiny_images import make_images
from tests.training.data.image_sets import as_parquet, as_tars
from tests.training.rank_processes import all_well
from tests.training.stage_configs import codes_config, photographs, power_cut
from training.data.cluster_data import ClusterData
from training.data.code_cache import CodeCache, shard_path
from training.data.crops import ten_crops
from training.data.images import ImageFolder, open_images
from training.loop.run_dir import lock_folder
from training.metrics.reconstruction import reconstruct
from training.stages.codes import extract_codes


def test_holds_the_codes_of_images_and_of_their_mirror_images(prepared: Path) -> None:
    cache = CodeCache.open(prepared / "codes-train")
    model = load_tokenizer(prepared / "tokenizer" / "tokenizer.safetensors")
    images = open_images(prepared / "train").read(16)
    everyone = np.arange(len(cache))
    for variant, pixels in enumerate([images.pixels, images.pixels[:, :, ::-1].copy()]):
        _, codes = reconstruct(model, pixels)
        stored = cache.take(everyone, np.full(len(cache), variant))
        assert (stored == codes).mean() > 0.999  # other batches may round a tie the other way
    assert cache.labels.tolist() == images.labels.tolist()
    assert [shard.num_images for shard in cache.index.shards] == [10, 10, 10, 6]
    assert cache.index.class_names == images.class_names


def test_goes_on_where_it_stopped(prepared: Path, tmp_path: Path) -> None:
    config = codes_config(prepared, "train", out=tmp_path / "codes")
    with power_cut(20) as report:
        extract_codes(config, report)
    first = shard_path(config.out, "codes", 0)
    written = first.stat().st_mtime_ns
    seen: list[int] = []
    extract_codes(config, lambda done, total, text: seen.append(done))
    assert seen == [30, 36]
    assert first.stat().st_mtime_ns == written
    expected, actual = CodeCache.open(prepared / "codes-train"), CodeCache.open(config.out)
    assert all(np.array_equal(a, b) for a, b in zip(expected.codes, actual.codes, strict=True))
    assert extract_codes(config).complete


def test_a_cache_of_another_tokenizer_is_refused(prepared: Path, tmp_path: Path) -> None:
    config = codes_config(prepared, "val", out=tmp_path / "codes")
    extract_codes(config)
    other = tmp_path / "tokenizer.safetensors"
    content = bytearray((prepared / "tokenizer" / "tokenizer.safetensors").read_bytes())
    content[-1] ^= 1
    other.write_bytes(bytes(content))
    with pytest.raises(ConfigError, match="begun otherwise: tokenizer_sha256 is another;"):
        extract_codes(config.model_copy(update={"tokenizer": other}))


def test_image_size_must_fit_the_grid(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of 4"):
        extract_codes(codes_config(prepared, "val", out=tmp_path / "c", image_size=18))


def test_unwritable_folder(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        extract_codes(codes_config(prepared, "val", out=tmp_path / "file" / "codes"))


def test_a_cache_of_other_images_is_refused(prepared: Path, tmp_path: Path) -> None:
    make_images(tmp_path / "images", per_class=2)
    config = codes_config(prepared, "val", out=tmp_path / "codes", data=tmp_path / "images")
    extract_codes(config)
    assert extract_codes(config).complete
    path = tmp_path / "images" / "bar" / "000.png"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ConfigError, match="begun otherwise: files_sha256 is another; choose"):
        extract_codes(config)
    (tmp_path / "images" / "cat").mkdir()
    path.rename(tmp_path / "images" / "cat" / "000.png")
    path.with_name("001.png").unlink()
    with pytest.raises(ConfigError, match="num_files was 6, is 5; class_names has besides 'cat'"):
        extract_codes(config)


@pytest.mark.parametrize("other", [{"background": "none"}, {"exif_orientation": False}])
def test_a_cache_of_images_that_were_read_otherwise_is_refused(
    prepared: Path, tmp_path: Path, other: dict[str, object]
) -> None:
    config = codes_config(prepared, "val", out=tmp_path / "codes")
    extract_codes(config)
    with pytest.raises(
        ConfigError,
        match=f"{next(iter(other))} was",
    ):
        extract_codes(config.model_copy(update=other))
    changed = config.model_copy(update={**other, "out": tmp_path / "other"})
    extract_codes(changed)
    with pytest.raises(ConfigError, match=f"val_codes: has another {next(iter(other))} than codes"):
        ClusterData(config.out, changed.out, None)


def test_a_shard_of_unreadable_images_is_empty(prepared: Path, tmp_path: Path) -> None:
    make_images(tmp_path / "images", per_class=2)
    for path in (tmp_path / "images" / "disc").iterdir():
        path.write_bytes(b"")
    config = codes_config(
        prepared, "train", out=tmp_path / "codes", data=tmp_path / "images", shard_images=2
    )
    index = extract_codes(config)
    assert [shard.num_images for shard in index.shards] == [2, 0, 2]
    assert len(index.skipped) == 2
    cache = CodeCache.open(config.out)
    assert cache.labels.tolist() == [0, 0, 2, 2]
    everyone = np.arange(4)
    stored = cache.take(everyone, everyone * 0)
    assert np.array_equal(stored[2:], cache.codes[2][:, 0])


def test_images_of_which_none_can_be_read(prepared: Path, tmp_path: Path) -> None:
    make_images(tmp_path / "images", per_class=1)
    for path in (tmp_path / "images").glob("*/*"):
        path.write_bytes(b"")
    with pytest.raises(ArtifactError, match="none of its images"):
        extract_codes(
            codes_config(prepared, "val", out=tmp_path / "codes", data=tmp_path / "images")
        )


def test_one_process_at_a_time(prepared: Path, tmp_path: Path) -> None:
    config = codes_config(prepared, "val", out=tmp_path / "codes")
    with lock_folder(config.out), pytest.raises(ConfigError, match="another run is using"):
        extract_codes(config)


def test_the_tokenizer_of_a_bundle_serves_if_it_has_its_encoder(tmp_path: Path) -> None:
    photographs(tmp_path)
    card, parts = tiny_card(), tiny_parts()
    whole, half = tmp_path / "whole", tmp_path / "half"
    save_bundle(whole, card, parts, weights_dtype=torch.float32, with_encoder=True)
    save_bundle(half, card, parts)
    save_model(tmp_path / "t.safetensors", parts.tokenizer)
    from_file = codes_config(tmp_path, "val", tokenizer=tmp_path / "t.safetensors")
    from_bundle = codes_config(tmp_path, "val", tokenizer=whole, out=tmp_path / "codes")
    index = extract_codes(from_bundle)
    extract_codes(from_file)
    assert index.tokenizer_sha256 == read_manifest(whole).tokenizer_sha256
    images = np.arange(index.num_images)
    expected, actual = (
        CodeCache.open(one.out).take(images, np.zeros_like(images))
        for one in (from_file, from_bundle)
    )
    assert np.array_equal(actual, expected)
    with pytest.raises(ArtifactError, match="half: has no encoder"):
        extract_codes(codes_config(tmp_path, "val", tokenizer=half, out=tmp_path / "none"))


def test_ten_crops_are_stored_in_their_order(prepared: Path, tmp_path: Path) -> None:
    config = codes_config(
        prepared, "val", out=tmp_path / "codes", variants="ten_crop", crop_range=1.3
    )
    index = extract_codes(config)
    assert (index.num_variants, index.variants, index.crop_range) == (10, "ten_crop", 1.3)
    cache = CodeCache.open(config.out)
    model = load_tokenizer(config.tokenizer)
    crops = ten_crops(open_images(prepared / "val").read(20).pixels, 16)
    everyone = np.arange(len(cache))
    for variant in range(10):
        _, codes = reconstruct(model, np.ascontiguousarray(crops[:, variant]))
        stored = cache.take(everyone, np.full(len(cache), variant))
        assert (stored == codes).mean() > 0.999
    with pytest.raises(ConfigError, match="begun otherwise: variants was 'ten_crop', is 'flip'"):
        extract_codes(config.model_copy(update={"variants": "flip"}))
    with pytest.raises(ConfigError, match=r"crop_range was 1\.3, is 1\.2"):
        extract_codes(config.model_copy(update={"crop_range": 1.2}))


@pytest.mark.parametrize("write", [as_tars, as_parquet])
def test_the_codes_are_those_of_the_images_however_stored(
    prepared: Path, tmp_path: Path, write: Callable[[ImageFolder, Path], Path]
) -> None:
    images = write(ImageFolder.scan(prepared / "train"), tmp_path / "images")
    config = codes_config(prepared, "train", out=tmp_path / "codes", data=images)
    extract_codes(config)
    expected, actual = CodeCache.open(prepared / "codes-train"), CodeCache.open(config.out)
    assert actual.index.class_names == expected.index.class_names
    assert np.array_equal(actual.labels, expected.labels)
    assert all(np.array_equal(a, b) for a, b in zip(expected.codes, actual.codes, strict=True))


@pytest.mark.parametrize("damage", ["missing", "altered", "entry"])
def test_a_damaged_shard_is_made_anew(prepared: Path, tmp_path: Path, damage: str) -> None:
    config = codes_config(prepared, "train", out=tmp_path / "codes")
    extract_codes(config)
    path = shard_path(config.out, "codes", 1)
    whole = path.read_bytes()
    if damage == "altered":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        (path if damage == "missing" else config.out / "shard-00001.json").unlink()
    seen: list[int] = []
    extract_codes(config, lambda done, total, text: seen.append(done))
    assert seen == [20]
    assert path.read_bytes() == whole
    CodeCache.open(config.out)


def test_an_entry_that_is_no_entry_is_refused(prepared: Path, tmp_path: Path) -> None:
    config = codes_config(prepared, "val", out=tmp_path / "codes")
    extract_codes(config)
    (config.out / "shard-00000.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"shard-00000\.json: is not the entry of a shard"):
        extract_codes(config)


def test_ranks_share_the_shards(prepared: Path, tmp_path: Path) -> None:
    config = codes_config(prepared, "train", out=tmp_path / "codes", threads=1)
    all_well(2, extract_codes, config)
    expected, actual = CodeCache.open(prepared / "codes-train"), CodeCache.open(config.out)
    assert all(np.array_equal(a, b) for a, b in zip(expected.codes, actual.codes, strict=True))


def test_one_class_is_refused(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    shutil.copytree(prepared / "val" / "bar", tmp_path / "images" / "bar")
    config = codes_config(prepared, "val", out=tmp_path / "codes", data=tmp_path / "images")
    with pytest.raises(ConfigError, match=r"data: .*one class only, 'bar'"):
        extract_codes(config)
