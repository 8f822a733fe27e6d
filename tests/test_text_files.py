"""Text as editors of people save it: with a byte order mark, as UTF-16, as Latin-1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from masc_core.bundle.registry import CURRENT_FILE, ActiveVersion
from masc_core.errors import MascError
from masc_core.io.files import read_json
from server.auth.api_keys import read_keys
from server.auth.command import create
from tests.tiny_images import make_images
from tests.training.data.image_sets import png, write_tar
from training.config import load_config
from training.data.images import open_images
from training.pretrained.class_names import read_class_names
from training.stages.configs import ShowConfig
from training.studies.acceleration import read_curve

HASH = "ab" * 32


def config_note(path: Path) -> object:
    return load_config(ShowConfig, path, {}).tokenizer


def class_table(path: Path) -> object:
    path.rename(make_images(path.parent / "x", per_class=1) / "classes.txt")
    return open_images(path.parent / "x").class_names[0]


def class_names(path: Path) -> object:
    return read_class_names(1, path)[0]


def keys(path: Path) -> object:
    path.chmod(0o600)
    create("alice", path)
    return [key.name for key in read_keys(path)]


def curve(path: Path) -> object:
    return read_curve(path, "fid")


def active(path: Path) -> object:
    path.rename(path.with_name(CURRENT_FILE))
    return ActiveVersion(path.parent).read()


def shard(extension: str) -> Callable[[Path], object]:
    def label(path: Path) -> object:
        members = [("0.png", png(0)), (f"0.{extension}", path.read_bytes())]
        return open_images(write_tar(path.parent / "a.tar", members)).class_names

    return label


READERS: dict[str, tuple[Callable[[Path], object], str, object]] = {
    "config": (config_note, 'tokenizer = "käse"\nout = "o"\n', Path("käse")),
    "class table": (class_table, "bar\tkäse\ndisc\tb\nstripes\tc\n", "käse"),
    "class names": (class_names, "käse\n", "käse"),
    "keys": (keys, f'[[keys]]\nname = "bob" # käse\nsha256 = "{HASH}"\n', ["bob", "alice"]),
    "log": (curve, '{"epoch": 1, "fid": 2, "note": "käse"}\n', [(1.0, 2.0)]),
    "current": (active, "2\n", "2"),
    "cls": (shard("cls"), "3\n", ("3",)),
    "json": (shard("json"), '{"label": 3, "note": "käse"}', ("3",)),
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path, kind: str, encoding: str) -> None:
    read, text, value = READERS[kind]
    path = tmp_path / "file"
    path.write_bytes(text.replace("\n", "\r\n").encode(encoding))
    assert read(path) == value


@pytest.mark.parametrize("kind", sorted(READERS.keys() - {"json"}))
@pytest.mark.parametrize(
    ("encoding", "named"),
    [
        ("utf-16", "it is UTF-16, to be saved as UTF-8"),
        ("utf-16-le", "it is binary, or UTF-16, to be saved as UTF-8"),
        ("utf-32", "it is UTF-32, to be saved as UTF-8"),
    ],
)
def test_other_encodings_are_named_in_one_line(
    tmp_path: Path, kind: str, encoding: str, named: str
) -> None:
    read, text, _ = READERS[kind]
    path = tmp_path / "file"
    path.write_bytes(text.encode(encoding))
    with pytest.raises(MascError, match=named) as error:
        read(path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", sorted(READERS.keys() - {"cls", "current", "json"}))
def test_latin_1_is_named_by_its_line(tmp_path: Path, kind: str) -> None:
    read, text, _ = READERS[kind]
    path = tmp_path / "file"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(MascError, match=r"line \d is not UTF-8"):
        read(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_says_itself_how_it_is_encoded(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes('{"name": "käse"}'.encode(encoding))
    assert read_json(path) == {"name": "käse"}
