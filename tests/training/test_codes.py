from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from masc_core.errors import ConfigError
from masc_core.weights import load_tokenizer
from tests.training.stages import codes_config
from training.code_cache import CodeCache, shard_path
from training.codes import extract_codes
from training.images import ImageFolder
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
