from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from masc_core.errors import ConfigError
from tests.tiny_images import make_images
from tests.training.data.image_sets import as_parquet, as_tars, png, write_parquet, write_tar
from training.data.folder import ImageFolder
from training.data.images import open_images
from training.data.parquet import ParquetImages
from training.data.tar_shards import TarShards

SAMPLE = [("0.png", png(0)), ("0.cls", b"0")]


@pytest.mark.parametrize(("write", "kind"), [(as_tars, TarShards), (as_parquet, ParquetImages)])
def test_every_kind_holds_the_same_images(tmp_path: Path, write: object, kind: type) -> None:
    folder = ImageFolder.scan(make_images(tmp_path / "folder", per_class=4))
    other = open_images(write(folder, tmp_path / "other"))  # type: ignore[operator]
    assert isinstance(other, kind)
    assert other.class_names == folder.class_names
    expected, actual = folder.read(16), other.read(16)
    assert np.array_equal(actual.pixels, expected.pixels)
    assert np.array_equal(actual.labels, expected.labels)
    some = np.array([11, 0, 7, 7])
    assert np.array_equal(other.read(16, some).pixels, expected.pixels[some])
    assert other.fingerprint() != folder.fingerprint()
    assert open_images(tmp_path / "other").fingerprint() == other.fingerprint()


def test_a_folder_of_folders_is_class_folders(tmp_path: Path) -> None:
    assert isinstance(open_images(make_images(tmp_path / "x", per_class=1)), ImageFolder)


def test_patterns_name_shards_in_order(tmp_path: Path) -> None:
    for number in range(12):
        write_tar(tmp_path / f"a-{number:02d}.tar", [("0.png", png(number)), ("0.cls", b"0")])

    def opened(pattern: str) -> list[str]:
        source = open_images(tmp_path / pattern)
        assert isinstance(source, TarShards)
        return [shard.name for shard in source.shards]

    assert opened("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert opened("a-{11,02}.tar") == ["a-02.tar", "a-11.tar"]
    assert opened("a-{0,1}{1..1}.tar") == ["a-01.tar", "a-11.tar"]
    assert opened("a-0?.tar") == [f"a-0{i}.tar" for i in range(10)]
    assert opened("a-03.tar") == ["a-03.tar"]
    with pytest.raises(ConfigError, match=r"a-12\.tar is missing"):
        open_images(tmp_path / "a-{10..12}.tar")
    with pytest.raises(ConfigError, match="no such folder or file"):
        open_images(tmp_path / "b-*.tar")


def test_what_is_no_set_of_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ConfigError, match=r"notes\.txt: no set of images"):
        open_images(tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match="no class folders"):
        open_images(tmp_path)
    write_tar(tmp_path / "a.tar", SAMPLE)
    assert len(open_images(tmp_path)) == 1
    (tmp_path / "class").mkdir()
    with pytest.raises(ConfigError, match=r"a\.tar beside folders"):
        open_images(tmp_path)
    (tmp_path / "class").rmdir()
    write_parquet(tmp_path / "b.parquet", [png(0)], [0])
    with pytest.raises(ConfigError, match=r"several kinds: \.parquet, \.tar"):
        open_images(tmp_path)
