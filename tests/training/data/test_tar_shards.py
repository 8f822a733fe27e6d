from __future__ import annotations

import gzip
import io
import logging
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from masc_core.errors import ArtifactError, ConfigError, MascError
from tests.training.data.image_sets import png, write_tar
from training.data.tar_shards import TarShards


def scan(folder: Path, *shards: Sequence[tuple[str, bytes]]) -> TarShards:
    paths = [write_tar(folder / f"{i}.tar", members) for i, members in enumerate(shards)]
    return TarShards.scan(folder, paths)


def test_samples_are_grouped_by_the_name_up_to_its_first_dot(tmp_path: Path) -> None:
    shards = scan(
        tmp_path,
        [
            *[("./x/1.cls", b" 2\n"), ("./x/1.seg.png", png(9)), ("./x/1.PNG", png(1))],
            *[("y/1.json", b'{"label": 1, "text": "?"}'), ("y/1.jpg", png(2))],
        ],
        [
            *[("a.b/1.webp", png(3)), ("a.b/2.jpeg", png(4)), ("a.b/1.cls", b"0")],
            *[("a.b/2.json", b'{"caption": ""}'), ("a.b/2.cls", b"1"), ("notes.txt", b"hello")],
            *[("__meta__.json", b"{}"), (".hidden", b"")],
        ],
    )
    assert shards.keys == ("./x/1", "y/1", "a.b/1", "a.b/2")
    assert shards.labels.tolist() == [2, 1, 0, 1]
    assert shards.class_names == ("0", "1", "2")
    assert [shards.encoded(i) for i in (3, 0, 2, 1)] == [png(4), png(1), png(3), png(2)]
    assert shards.name(2) == f"{tmp_path / '1.tar'}:a.b/1"


def test_long_names_of_every_dialect(tmp_path: Path) -> None:
    for number, dialect in enumerate([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]):
        path = tmp_path / f"{number}.tar"
        stem = tmp_path / ("n" * 120)
        stem.with_suffix(".png").write_bytes(png(number))
        stem.with_suffix(".cls").write_text("1")
        with tarfile.open(path, "w", format=dialect) as archive:
            for suffix in (".png", ".cls"):
                archive.add(stem.with_suffix(suffix), stem.with_suffix(suffix).name)
        shards = TarShards.scan(path, [path])
        assert shards.keys == ("n" * 120,)
        assert shards.encoded(0) == png(number)


def test_names_come_from_classes_txt(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("n01\ta fish\nn02\ta bird\nplain\n")
    members = [("0.png", png(0)), ("0.cls", b"1")]
    assert scan(tmp_path, members).class_names == ("a fish", "a bird", "plain")
    with pytest.raises(ArtifactError, match=r"0\.tar: sample '0' has the label 3.*names 3 classes"):
        scan(tmp_path, [("0.png", png(0)), ("0.cls", b"3")])
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ArtifactError, match=r"classes\.txt: cannot be read"):
        scan(tmp_path, members)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("7.png", b"")], "sample '7' has no label: neither 7.cls nor 7.json"),
        ([("7.png", b""), ("8.cls", b"0")], "sample '7' has no label"),
        ([("7.png", b""), ("7.jpg", b""), ("7.cls", b"0")], "sample '7' has 2 images"),
        ([("7.png", b""), ("7.cls", b"cat")], "7.cls names no class, but 'cat'"),
        ([("7.png", b""), ("7.cls", b"-1")], "7.cls names no class, but -1"),
        ([("7.png", b""), ("7.cls", b"9" * 30)], "7.cls names no class"),
        ([("7.png", b""), ("7.json", b'{"label": true}')], "7.json names no class, but True"),
        ([("7.png", b""), ("7.json", b'{"id": 1}')], "7.json names no class, but None"),
        ([("7.png", b""), ("7.json", b"{")], "7.json names no class, but '{'"),
        ([("7.png", b""), ("7.cls", b"0"), ("7.cls", b"1")], "7.cls is in it twice, and differs"),
        ([("7.png", b""), ("7.b.cls", b"0"), ("7.a.cls", b"1")], "several labels: b.cls, a.cls;"),
        ([("7.txt", b""), ("7.cls", b"0")], "its tar shards hold no images"),
        ([], "its tar shards hold no images"),
    ],
)
def test_a_shard_of_another_layout_is_refused(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    with pytest.raises(MascError, match=message):
        scan(tmp_path, members)


def test_a_damaged_shard_is_refused_and_named(tmp_path: Path) -> None:
    members = [(f"{i}.{kind}", c) for i in range(3) for kind, c in (("cls", b"0"), ("png", png(i)))]
    whole = write_tar(tmp_path / "whole.tar", members).read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    header = whole.index(b"1.cls")
    path = tmp_path / "bad.tar"
    for content in (
        *(whole[:cut] for cut in (end, end - 512, end - 700, header, header + 100, 100)),
        whole[:header] + b"x" * 512 + whole[header + 512 :],
        gzip.compress(whole),
        b"hello" * 300,
        b"",
    ):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"bad\.tar: is no whole, uncompressed tar"):
            TarShards.scan(tmp_path, [path])
    with pytest.raises(ArtifactError, match=r"gone\.tar"):
        TarShards.scan(tmp_path, [tmp_path / "gone.tar"])


def test_a_shard_that_goes_away_is_an_error(tmp_path: Path) -> None:
    shards = scan(tmp_path, [("0.png", png(0)), ("0.cls", b"0")])
    assert shards.decode(0) is not None
    shards.shards[0].unlink()
    with pytest.raises(ArtifactError, match="cannot be read any more"):
        shards.decode(0)


def test_huge_labels_are_something_else(tmp_path: Path) -> None:
    with pytest.raises((ArtifactError, ConfigError), match="names no class, but 1000000"):
        scan(tmp_path, [("0.png", png(0)), ("0.cls", b"1000000")])


def test_a_sample_without_an_image_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        shards = scan(
            tmp_path,
            [("a.png", png(0)), ("a.cls", b"0"), ("b.cls", b"1"), ("__MACOSX/._a.png", b"")],
            [("c.heic", b""), ("c.cls", b"0"), ("d.txt", b""), ("._e.png", b"")],
        )
    assert shards.keys == ("a",)
    (record,) = caplog.records
    for part in ("3 samples have no image", "0.tar:b", "1.tar:c", "first dot"):
        assert part in record.getMessage()


def test_names_with_dots_follow_webdatasets_rule(tmp_path: Path) -> None:
    members = [("1.image.jpg", png(1)), ("1.label.cls", b"4"), ("2_2.0.png", png(2))]
    shards = scan(tmp_path, [*members, ("2_2.0.cls", b"5"), ("2_2.cls", b"6")])
    assert shards.keys == ("1", "2_2")
    assert shards.class_names == ("4", "6")
    assert [shards.encoded(i) for i in range(2)] == [png(1), png(2)]
    with pytest.raises(ArtifactError, match="sample '2_2' has 2 images; its name ends at its firs"):
        scan(tmp_path, [("2_2.0.png", b""), ("2_2.1.png", b""), ("2_2.0.cls", b"5")])


def test_classes_are_those_that_occur(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = [
        (f"{i}.{kind}", c) for i in (1, 2, 3) for kind, c in (("cls", b"%d" % i), ("png", png(i)))
    ]
    shards = scan(tmp_path, members)
    assert shards.class_names == ("1", "2", "3")
    assert shards.labels.tolist() == [0, 1, 2]
    assert not caplog.records
    (tmp_path / "classes.txt").write_text("zero\none\ntwo\nthree\n")
    with caplog.at_level(logging.WARNING):
        assert scan(tmp_path, members).class_names == ("zero", "one", "two", "three")
    assert f"{tmp_path}: there are no images of 'zero'" in caplog.text


def test_names_need_not_be_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as archive:
        for name, content in (("caf\xe9.png", b"no image"), ("caf\xe9.cls", b"0")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    shards = TarShards.scan(path, [path])
    assert shards.name(0) == rf"{path}:caf\udce9"
    assert len(shards.fingerprint()) == 64


def test_names_lead_nowhere_and_links_are_no_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tar(tmp_path / "x.tar", [("/etc/0.png", png(0)), ("/etc/0.cls", b"0")])
    with tarfile.open(path, "a") as archive:
        for name, kind in (("../1.png", tarfile.LNKTYPE), ("2.png", tarfile.SYMTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/0.png"
            archive.addfile(link)
    with caplog.at_level(logging.WARNING):
        shards = TarShards.scan(path, [path])
    assert shards.keys == ("/etc/0",)
    assert shards.encoded(0) == png(0)
    assert "2 samples have no image" in caplog.text
    assert "a link is no image" in caplog.text


@pytest.mark.parametrize("dialect", ["gnu", "posix"])
def test_sparse_members_are_read_whole_or_refused(tmp_path: Path, dialect: str) -> None:
    content = png(0)
    for name in ("0.png", "1.png"):
        with (tmp_path / name).open("wb") as file:
            file.write(content)
            file.truncate(1 << 20 if name == "0.png" else len(content))
    for name in ("0.cls", "1.cls"):
        (tmp_path / name).write_bytes(b"1")
    names = ["0.png", "0.cls", "1.png", "1.cls"]
    tar = ["tar", "--sparse", f"--format={dialect}", "-cf", "x.tar", *names]
    subprocess.run(tar, cwd=tmp_path, check=True)
    shards = TarShards.scan(tmp_path / "x.tar", [tmp_path / "x.tar"])
    assert shards.labels.tolist() == [0, 0]
    pixels = shards.read(16).pixels
    assert np.array_equal(pixels[0], pixels[1])
