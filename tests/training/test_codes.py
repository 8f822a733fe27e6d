from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from masc_core.errors import ArtifactError, ConfigError
from masc_core.weights import load_tokenizer
from tests.tiny_images import make_images
from tests.training.stages import codes_config
from training.code_cache import CodeCache, shard_path
from training.codes import extract_codes
from training.images import ImageFolder
from training.lock import lock_folder
from training.reconstruction import reconstruct


def test_holds_the_codes_of_images_and_of_their_mirror_images(prepared: Path) -> None:
    cache = CodeCache.open(prepared / "codes-train")
    model = load_tokenizer(prepared / "tokenizer" / "tokenizer.safetensors")
    images = ImageFolder.scan(prepared / "train").read(16)
    everyone = np.arange(len(cache))
    for variant, pixels in enumerate([images.pixels, images.pixels[:, :, ::-1].copy()]):
        _, codes = reconstruct(model, pixels)
        stored = cache.take(everyone, np.full(len(cache), variant))
        assert (stored == codes).mean() > 0.999  # other batches may round a tie the other way
    assert cache.labels.tolist() == images.labels.tolist()
    assert cache.index.shards == (10, 10, 10, 6)
    assert cache.index.class_names == images.class_names


def test_goes_on_where_it_stopped(prepared: Path, tmp_path: Path) -> None:
    config = codes_config(prepared, "train", out=tmp_path / "codes")

    def die(done: int, total: int, text: str) -> None:
        if done == 20:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        extract_codes(config, die)
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
    with pytest.raises(ConfigError, match="another tokenizer"):
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
    with pytest.raises(ConfigError, match="other images"):
        extract_codes(config)


def test_a_shard_of_unreadable_images_is_empty(prepared: Path, tmp_path: Path) -> None:
    make_images(tmp_path / "images", per_class=2)
    for path in (tmp_path / "images" / "disc").iterdir():
        path.write_bytes(b"")
    config = codes_config(
        prepared, "train", out=tmp_path / "codes", data=tmp_path / "images", shard_images=2
    )
    index = extract_codes(config)
    assert index.shards == (2, 0, 2)
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
