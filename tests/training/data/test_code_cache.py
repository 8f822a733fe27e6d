from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masc_core.errors import ArtifactError
from training.data.code_cache import CodeCache, CodeIndex, read_index, write_index, write_shard


def write_cache(folder: Path, num_codes: int = 300, complete: bool = True) -> np.ndarray:
    generator = np.random.default_rng(0)
    codes = generator.integers(0, num_codes, (7, 2, 9))
    index = CodeIndex(
        tokenizer_sha256="0" * 64,
        files_sha256="1" * 64,
        image_size=12,
        variants="flip",
        crop_range=1.0,
        num_codes=num_codes,
        num_positions=9,
        num_files=7,
        shard_files=4,
        class_names=("a", "b"),
    )
    folder.mkdir()
    shards = tuple(
        write_shard(
            folder,
            number,
            codes[rows].astype(index.dtype),
            np.arange(7, dtype=np.int64)[rows] % 2,
            skipped=(f"file {number}",),
        )
        for number, rows in enumerate([slice(0, 4), slice(4, 7)])
    )
    write_index(folder, index.model_copy(update={"shards": shards[: 1 + complete]}))
    return codes


@pytest.mark.parametrize(("num_codes", "bytes_a_code"), [(300, 2), (65536, 2), (65537, 4)])
def test_takes_variants_across_shards(tmp_path: Path, num_codes: int, bytes_a_code: int) -> None:
    codes = write_cache(tmp_path / "c", num_codes)
    cache = CodeCache.open(tmp_path / "c")
    images, variants = np.array([6, 0, 3, 4, 6]), np.array([1, 0, 1, 0, 0])
    assert np.array_equal(cache.take(images, variants), codes[images, variants])
    assert cache.codes[0].itemsize == bytes_a_code
    assert cache.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert len(cache) == cache.index.num_images == 7
    assert cache.index.skipped == ("file 0", "file 1")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, CodeCache]:
    folder = tmp_path_factory.mktemp("written") / "c"
    return write_cache(folder), CodeCache.open(folder)


@settings(deadline=None)
@given(chosen=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1)), max_size=20))
def test_takes_any_images_in_any_order(
    written: tuple[np.ndarray, CodeCache], chosen: list[tuple[int, int]]
) -> None:
    codes, cache = written
    images, variants = np.array(chosen, np.int64).reshape(-1, 2).T
    taken = cache.take(images, variants)
    assert taken.dtype == np.int64
    assert np.array_equal(taken, codes[images, variants])


@pytest.mark.parametrize(("image", "variant"), [(7, 0), (-1, 0), (0, 2)])
def test_there_is_no_image_or_variant_beyond_the_last(
    tmp_path: Path, image: int, variant: int
) -> None:
    write_cache(tmp_path / "c")
    with pytest.raises(IndexError):
        CodeCache.open(tmp_path / "c").take(np.array([1, image]), np.array([0, variant]))


def test_counts_every_variant(tmp_path: Path) -> None:
    codes = write_cache(tmp_path / "c")
    cache = CodeCache.open(tmp_path / "c")
    assert np.array_equal(cache.counts(slice(1)), np.bincount(codes[:, 0].ravel(), minlength=300))
    counts = cache.counts()
    assert np.array_equal(counts, np.bincount(codes.ravel(), minlength=300))


def test_an_unfinished_cache_is_refused(tmp_path: Path) -> None:
    write_cache(tmp_path / "c", complete=False)
    with pytest.raises(ArtifactError, match="not finished"):
        CodeCache.open(tmp_path / "c")


@pytest.mark.parametrize("name", ["codes-00001.npy", "labels-00000.npy"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "pickle", "shape", "altered"])
def test_a_damaged_shard_is_refused_and_named(tmp_path: Path, name: str, damage: str) -> None:
    write_cache(tmp_path / "c")
    path = tmp_path / "c" / name
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "pickle":
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    elif damage == "altered":
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    else:
        np.save(path, np.zeros((1, 2)))
    with pytest.raises(ArtifactError, match=name):
        CodeCache.open(tmp_path / "c")


def test_missing_and_damaged_index(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no code cache"):
        read_index(tmp_path)
    for text in ("{", json.dumps({"format": 1}), "[]"):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(ArtifactError, match="not the index"):
            read_index(tmp_path)
