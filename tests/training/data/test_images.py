from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from masc_core.errors import ArtifactError, ConfigError
from tests.tiny_images import CLASSES, make_images
from tests.training.data.image_sets import as_parquet, as_tars, png, write_parquet, write_tar
from training.data.images import ImageFolder, open_images
from training.data.parquet import ParquetImages
from training.data.source import SUFFIXES_OF
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


def test_lists_classes_and_files_in_order(tmp_path: Path) -> None:
    folder = ImageFolder.scan(make_images(tmp_path / "train", per_class=3))
    assert folder.class_names == CLASSES
    assert folder.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert folder.files[:3] == ("bar/000.png", "bar/001.png", "bar/002.png")


@pytest.mark.parametrize("beside", [True, False])
def test_names_come_from_classes_txt(tmp_path: Path, *, beside: bool) -> None:
    root = make_images(tmp_path / "train", per_class=1)
    table = (tmp_path if beside else root) / "classes.txt"
    table.write_text("disc\tround thing\nbar\ta bar\n")
    assert ImageFolder.scan(root).class_names == ("a bar", "round thing", "stripes")


def test_reads_what_the_files_hold(tmp_path: Path) -> None:
    folder = ImageFolder.scan(make_images(tmp_path / "train", per_class=2))
    images = folder.read(16)
    assert images.pixels.shape == (6, 16, 16, 3)
    for pixels, file in zip(images.pixels, folder.files, strict=True):
        assert np.array_equal(pixels, np.asarray(Image.open(tmp_path / "train" / file)))
    some = folder.read(16, np.array([4, 1]))
    assert np.array_equal(some.pixels, images.pixels[[4, 1]])
    assert some.labels.tolist() == [2, 0]


def test_other_modes_and_sizes_become_rgb_squares(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "grey"
    folder.mkdir(parents=True)
    Image.new("L", (40, 24), 77).save(folder / "wide.jpg")
    Image.new("RGBA", (8, 20), (1, 2, 3, 4)).save(folder / "tall.png")
    images = ImageFolder.scan(tmp_path / "train").read(16)
    assert images.pixels.shape == (2, 16, 16, 3)


def test_unreadable_files_are_skipped_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_images(tmp_path / "train", per_class=2)
    (root / "bar" / "000.png").write_bytes(b"not an image")
    whole = (root / "disc" / "001.png").read_bytes()
    (root / "disc" / "001.png").write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING):
        images = ImageFolder.scan(root).read(16)
    assert images.labels.tolist() == [0, 1, 2, 2]
    assert len(images.pixels) == 4
    assert [Path(p).name for p in images.skipped] == ["000.png", "001.png"]
    assert "skipped 2" in caplog.text


def test_every_format_is_taken_and_subfolders_too(tmp_path: Path) -> None:
    root = make_images(tmp_path / "train", per_class=1)
    for name, suffixes in SUFFIXES_OF.items():
        for suffix in suffixes:
            place = root / "bar" / "more" / name
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (9, 9, 9)).save(place / f"x{suffix.upper()}", name)
    folder = ImageFolder.scan(root)
    assert len(folder) == 3 + sum(map(len, SUFFIXES_OF.values()))
    images = folder.read(16)
    assert not images.skipped
    assert images.labels.tolist().count(0) == 1 + sum(map(len, SUFFIXES_OF.values()))


def test_what_is_left_out_is_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_images(tmp_path / "train", per_class=1)
    for name in ("bar/a.heic", "bar/sub/b.HEIC", "disc/notes.txt", "disc/README", "loose.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    for name in ("bar/.DS_Store", "bar/._000.png", "__MACOSX/bar/000.png", "bar/.sub/x.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")  # nobody put these there
    with caplog.at_level(logging.WARNING):
        folder = ImageFolder.scan(root)
    assert len(folder) == 3
    assert folder.class_names == CLASSES
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{root}: 5 files are left out: 2 .heic, 1 .png beside the class folders, 1 .txt, "
        "1 without a suffix"
    )


def test_links_to_nothing_are_skipped_and_links_upwards_entered_once(tmp_path: Path) -> None:
    root = make_images(tmp_path / "train", per_class=1)
    (root / "bar" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "bar" / "again").symlink_to(root / "bar")
    folder = ImageFolder.scan(root)
    assert folder.files[:2] == ("bar/000.png", "bar/gone.png")
    before = folder.fingerprint()
    images = folder.read(16)
    assert (len(images.pixels), images.skipped) == (3, (str(root / "bar" / "gone.png"),))
    (root / "bar" / "000.png").rename(tmp_path / "nowhere.png")
    assert folder.fingerprint() != before


def test_names_need_not_be_utf_8(tmp_path: Path) -> None:
    root = make_images(tmp_path / "train", per_class=1)
    strange = Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9"))
    strange.mkdir()
    Path(os.fsdecode(os.fsencode(strange) + b"/\xff.png")).write_bytes(b"no image")
    shutil.copy(root / "bar" / "000.png", strange)
    folder = ImageFolder.scan(root)
    assert folder.class_names == ("bar", r"caf\udce9", "disc", "stripes")
    assert len(folder.fingerprint()) == 64
    skipped = folder.read(16).skipped
    assert skipped == (rf"{root}/caf\udce9/\udcff.png",)
    assert json.loads(json.dumps(skipped).encode()) == list(skipped)


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"")
    with pytest.raises(ArtifactError, match="none of its images"):
        ImageFolder.scan(tmp_path).read(16)


def test_spread_touches_every_class(tmp_path: Path) -> None:
    folder = ImageFolder.scan(make_images(tmp_path / "train", per_class=10))
    chosen = folder.spread(6)
    assert len(set(chosen.tolist())) == 6
    assert {folder.labels[i] for i in chosen} == {0, 1, 2}
    assert folder.spread(1000).tolist() == list(range(30))


def test_missing_empty_and_classless_folders(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        ImageFolder.scan(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no class folders"):
        ImageFolder.scan(tmp_path)
    make_images(tmp_path / "train", per_class=1)
    (tmp_path / "train" / ".thumbnails").mkdir()
    assert ImageFolder.scan(tmp_path / "train").class_names == CLASSES
    (tmp_path / "train" / "empty").mkdir()
    with caplog.at_level(logging.WARNING):
        assert ImageFolder.scan(tmp_path / "train").class_names == (
            *CLASSES[:2],
            "empty",
            CLASSES[2],
        )
    assert f"{tmp_path / 'train'}: there are no images of 'empty'" in caplog.text
    shutil.rmtree(tmp_path / "train" / "empty")
    with pytest.raises(ConfigError, match=r"is .*train the set of images\?"):
        ImageFolder.scan(tmp_path)
    for folder in (tmp_path / "train").iterdir():
        (folder / "000.png").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="its class folders hold no images"):
        ImageFolder.scan(tmp_path / "train")


def test_the_fingerprint_is_of_names_and_sizes(tmp_path: Path) -> None:
    root = make_images(tmp_path / "train", per_class=1)
    before = ImageFolder.scan(root).fingerprint()
    copy = make_images(tmp_path / "copy", per_class=1)
    assert ImageFolder.scan(copy).fingerprint() == before
    (root / "bar" / "000.png").rename(root / "bar" / "001.png")
    assert ImageFolder.scan(root).fingerprint() != before


@pytest.mark.parametrize("table", ["n01\ta fish\nn02\ta bird\n", "bar\ta bar\ndisc a disc\n"])
def test_folders_that_a_table_does_not_name_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, table: str
) -> None:
    root = make_images(tmp_path / "train", per_class=1)
    (root / "classes.txt").write_text(table)
    with caplog.at_level(logging.WARNING):
        assert ImageFolder.scan(root).class_names[1:] == CLASSES[1:]
    named = "'bar', 'disc'" if "fish" in table else "'disc'"
    assert f"{root}: classes.txt gives no names to the folders {named}, 'stripes'" in caplog.text
    caplog.clear()
    (root / "classes.txt").write_text("".join(f"{name}\tx\n" for name in (*CLASSES, "more")))
    ImageFolder.scan(root)  # a table may serve several sets
    assert not caplog.records


def test_shards_are_known_by_their_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "A.TAR", SAMPLE)
    (tmp_path / "._A.TAR").write_bytes(b"of a file manager")
    assert len(open_images(tmp_path)) == 1
    for name in ("x.tar.gz", "x.tgz", "x.zip"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ConfigError, match=f"{name}: is compressed; unpack it"):
            open_images(tmp_path / name)
    (tmp_path / "A.TAR").unlink()
    with pytest.raises(ConfigError, match=r"no class folders.*is compressed"):
        open_images(tmp_path)


def test_columns_of_parquet_files_can_be_chosen(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": png(i), "path": ""} for i in range(2)]
    columns = {
        "img": pa.array(images, kind),
        "raw": pa.array([png(2), png(3)], pa.binary()),
        "fine_label": pa.array([3, 7]),
        "coarse_label": pa.array([1, 1]),
    }
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ArtifactError, match=r"no column 'image'; its.*train.parquet#image=NAME"):
        open_images(path)
    fine = open_images(f"{path}#image=img&label=fine_label")
    assert (fine.class_names, fine.labels.tolist()) == (("3", "7"), [0, 1])
    assert fine.encoded(1) == png(1)
    coarse = open_images(f"{tmp_path}/*.parquet#image=raw&label=coarse_label")
    assert (coarse.class_names, coarse.encoded(1)) == (("1",), png(3))
    for wrong in ("#label", "#text=x", "#image="):
        with pytest.raises(ConfigError, match="behind the # stands image=NAME"):
            open_images(f"{path}{wrong}")
    write_tar(tmp_path / "a.tar", SAMPLE)
    with pytest.raises(ConfigError, match="only parquet files have columns"):
        open_images(f"{tmp_path / 'a.tar'}#label=x")
