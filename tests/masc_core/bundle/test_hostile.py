"""Bundles whose author means harm: one line that names the file, in little time and memory."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from masc_core.bundle.manifest import (
    COUNTS_FILE,
    MANIFEST_FILE,
    MAX_BYTES,
    PRIOR_FILE,
    TOKENIZER_FILE,
    TRANSFORMER_FILE,
    Manifest,
    read_manifest,
    seal_of,
    verify_files,
    write_manifest,
)
from masc_core.bundle.read import load_bundle
from masc_core.bundle.registry import CURRENT_FILE, HISTORY_FILE, LOCK_FILE, Registry
from masc_core.errors import ArtifactError
from masc_core.io.files import sha256_file
from masc_core.io.tensors import read_tensors
from tests.hostile_files import IRREGULAR, memory_below, packed_zeros, sparse, write_prior
from tests.tiny_bundle import NUM_CODES, save_tiny_bundle

LISTED = [TRANSFORMER_FILE, TOKENIZER_FILE, PRIOR_FILE, COUNTS_FILE]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for version in ("2", "1"):
        save_tiny_bundle(root, version=version)
    return root


@pytest.fixture
def root(published: Path, tmp_path: Path) -> Path:
    """Version 1 is active, 2 is there."""
    return shutil.copytree(published, tmp_path / "models")


def seal(folder: Path, **changes: Any) -> None:
    """Write a manifest that fits what it says, but not our limits."""
    path = folder / MANIFEST_FILE
    content = json.loads(path.read_bytes()) | changes
    content["seal"] = seal_of(content)
    path.write_text(json.dumps(content))


def list_anew(folder: Path, name: str) -> None:
    manifest = read_manifest(folder)
    files = {**manifest.files, name: sha256_file(folder / name)}
    write_manifest(folder, manifest.model_copy(update={"files": files}))


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("kind", IRREGULAR)
def test_other_things_than_files_are_refused(root: Path, name: str, kind: str) -> None:
    registry, path = Registry(root), root / "tiny" / "2" / name
    path.unlink()
    IRREGULAR[kind](path)
    for refuse in (registry.verify, registry.activate):
        with pytest.raises(ArtifactError, match=f"{name}: cannot be read: not a regular file"):
            refuse("tiny", "2")
    with pytest.raises(ArtifactError, match=f"{name}: cannot be read"):
        load_bundle(path.parent)
    assert registry.current("tiny") == "1"
    registry.verify("tiny")


@pytest.mark.parametrize("kind", IRREGULAR)
def test_a_manifest_that_is_no_file_is_named(root: Path, kind: str) -> None:
    path = root / "tiny" / "2" / MANIFEST_FILE
    path.unlink()
    IRREGULAR[kind](path)
    registry = Registry(root)
    assert registry.versions("tiny") == ("1", "2")
    assert (registry.models(), registry.current("tiny")) == (("tiny",), "1")
    for refuse in (registry.verify, registry.activate):
        with pytest.raises(ArtifactError, match=r"manifest\.json: cannot be read: not a regular"):
            refuse("tiny", "2")


@pytest.mark.parametrize("name", [CURRENT_FILE, HISTORY_FILE, LOCK_FILE])
@pytest.mark.parametrize("kind", IRREGULAR)
def test_the_choice_of_a_version_may_be_no_file(root: Path, name: str, kind: str) -> None:
    path = root / "tiny" / name
    path.unlink(missing_ok=True)
    IRREGULAR[kind](path)
    registry = Registry(root)
    if name != LOCK_FILE:
        with pytest.raises(ArtifactError, match=f"{name}: cannot be read: not a regular file"):
            registry.previous("tiny")
    else:
        with pytest.raises(ArtifactError, match="cannot be written"):
            registry.activate("tiny", "2")


@pytest.mark.parametrize("name", [MANIFEST_FILE, *LISTED])
def test_a_sparse_file_is_not_read(root: Path, name: str) -> None:
    path = root / "tiny" / "2" / name
    sparse(path, 3_000_000_000)
    with (
        memory_below(8 << 20),
        pytest.raises(ArtifactError, match=f"{name}: cannot be read: it has 3,000,000,000 bytes"),
    ):
        Registry(root).activate("tiny", "2")


@pytest.mark.parametrize("name", [CURRENT_FILE, HISTORY_FILE])
def test_a_sparse_choice_is_not_read(root: Path, name: str) -> None:
    sparse(root / "tiny" / name, 1_000_000_000)
    with memory_below(8 << 20), pytest.raises(ArtifactError, match=f"{name}: cannot be read"):
        Registry(root).previous("tiny")


@pytest.mark.parametrize("size", [10**8, 8 * NUM_CODES])
def test_a_prior_takes_no_more_than_its_codes(root: Path, size: int) -> None:
    folder = root / "tiny" / "2"
    write_prior(folder / PRIOR_FILE, packed_zeros(f"({size},)", size=size), n=size)
    list_anew(folder, PRIOR_FILE)
    Registry(root).activate("tiny", "2")  # the file is as published
    with (
        memory_below(16 << 20),
        pytest.raises(ArtifactError, match=r"prior\.npz: (array 'mapping' is damaged|has 256 co)"),
    ):
        load_bundle(folder)


def test_a_prior_with_an_odd_head_is_refused_in_one_line(root: Path) -> None:
    folder = root / "tiny" / "2"
    write_prior(folder / PRIOR_FILE, packed_zeros(f"({'1,' * 20_000})"))
    list_anew(folder, PRIOR_FILE)
    with pytest.raises(ArtifactError, match=r"'mapping' is damaged: Header info length") as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_codes": 1 << 24}, "num_codes: Input should be less than or equal to 1048576"),
        ({"files": {f"f{i}": "0" * 64 for i in range(100)}}, "files: Dictionary should have at"),
        ({"files": {"../../etc/passwd": "0" * 64}}, "is not a plain name"),
        ({"version": "../1"}, "version: Value error, '../1' is not a plain name"),
        ({"class_names": ["a" * 201, *"bcde"]}, "class_names.0: String should have at most 200"),
        (
            {"class_names": ["a", "x\ny", *"cde"]},
            "class_names.1: Value error, 'x.*y' has control",
        ),
        ({"class_names": [*"abcd", "\u2028"]}, "class_names.4: Value error, .* has control"),
        ({"class_names": ["\x9b31m", *"bcde"]}, "class_names.0: Value error, .* has control"),
        ({"class_names": ["a"] * ((1 << 16) + 1)}, "class_names: Tuple should have at most 65536"),
        ({"created": "0001-01-01T00:00:00+14:00"}, "created: Input should be greater than"),
        ({"created": "9999-12-31T23:59:59-14:00"}, "created: Input should be less than"),
    ],
)
def test_sizes_names_and_dates_of_a_manifest_are_bounded(
    root: Path, changes: dict[str, Any], reason: str
) -> None:
    folder = root / "tiny" / "2"
    seal(folder, **changes)
    with pytest.raises(ArtifactError, match=reason):
        read_manifest(folder)


@pytest.mark.parametrize("value", ["[" * 10**5 + "]" * 10**5, '{"a":' * 10**5 + "1" + "}" * 10**5])
@pytest.mark.parametrize("field", ["metrics", "provenance"])
def test_a_manifest_that_is_nested_deeply_is_refused(root: Path, field: str, value: str) -> None:
    path = root / "tiny" / "2" / MANIFEST_FILE
    content = json.loads(path.read_bytes()) | {field: {"a": "HERE"}}
    path.write_text(json.dumps(content).replace('"HERE"', value))
    with pytest.raises(ArtifactError, match=r"manifest\.json: .*recursion"):
        read_manifest(path.parent)


@pytest.mark.parametrize("value", ["1" * 5000, '"\\ud800"', "-" + "9" * 5000])
def test_a_manifest_of_odd_values_is_refused_in_one_line(root: Path, value: str) -> None:
    path = root / "tiny" / "2" / MANIFEST_FILE
    content = json.loads(path.read_bytes()) | {"metrics": {"a": "HERE"}}
    path.write_text(json.dumps(content).replace('"HERE"', value))
    with pytest.raises(ArtifactError) as caught:
        read_manifest(path.parent)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", "1" + "0" * 400])
@pytest.mark.parametrize("field", ["metrics", "provenance"])
def test_a_manifest_of_figures_that_are_not_finite_is_refused(
    root: Path, field: str, value: str
) -> None:
    path = root / "tiny" / "2" / MANIFEST_FILE
    content = json.loads(path.read_bytes()) | {field: {"a": ["HERE"]}}
    path.write_text(json.dumps(content).replace('"HERE"', value))
    with pytest.raises(ArtifactError, match=f"{value[:99]}.* is not a figure"):
        read_manifest(path.parent)


def test_figures_that_are_not_finite_are_not_written(root: Path) -> None:
    folder = root / "tiny" / "2"
    before = (folder / MANIFEST_FILE).read_bytes()
    manifest = read_manifest(folder).model_copy(update={"metrics": {"fid": float("inf")}})
    with pytest.raises(ArtifactError, match="cannot be written: Out of range float"):
        write_manifest(folder, manifest)
    assert (folder / MANIFEST_FILE).read_bytes() == before


def test_names_of_classes_are_of_any_script(root: Path) -> None:
    folder = root / "tiny" / "2"
    names = ["ä" * 200, "犬", "👩\u200d🚀", "ভা\u200cষা", "<b>&"]
    seal(folder, class_names=names)
    assert list(read_manifest(folder).class_names) == names


LONG = "x" * 1_000_000


@pytest.mark.parametrize(
    "changes",
    [
        {"version": LONG},
        {LONG: 1},
        {"files": {LONG: "0" * 64}},
        {"files": {"a": LONG}},
        {"defaults": {"decoding": LONG}},
        {"defaults": {LONG: LONG}},
        {"class_names": [LONG]},
    ],
)
def test_what_is_wrong_is_said_in_short(root: Path, changes: dict[str, Any]) -> None:
    folder = root / "tiny" / "2"
    seal(folder, **changes)
    with pytest.raises(ArtifactError) as caught:
        read_manifest(folder)
    assert len(str(caught.value)) < 1000


def test_names_in_weights_and_choices_are_said_in_short(root: Path) -> None:
    folder = root / "tiny" / "2"
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    write_head(folder / TRANSFORMER_FILE, json.dumps({LONG: entry}).encode(), size=4)
    list_anew(folder, TRANSFORMER_FILE)
    (root / "tiny" / CURRENT_FILE).write_text(LONG)
    for refuse in (load_bundle, lambda _: Registry(root).current("tiny")):
        with pytest.raises(ArtifactError) as caught:
            refuse(folder)
        assert len(str(caught.value)) < 1100


def test_a_manifest_has_a_limit(root: Path) -> None:
    folder = root / "tiny" / "2"
    seal(folder, class_names=["x" * 100] * 10**5)
    with memory_below(MAX_BYTES), pytest.raises(ArtifactError, match=f"more than {MAX_BYTES:,}"):
        read_manifest(folder)


def test_a_manifest_that_nobody_could_read_is_not_written(root: Path) -> None:
    folder = root / "tiny" / "2"
    before = (folder / MANIFEST_FILE).read_bytes()
    manifest = read_manifest(folder)
    large = manifest.model_copy(update={"metrics": {"a": "x" * MAX_BYTES}})
    with pytest.raises(ArtifactError, match="would have"):
        write_manifest(folder, large)
    assert (folder / MANIFEST_FILE).read_bytes() == before


def write_head(path: Path, head: bytes, length: int | None = None, size: int = 0) -> None:
    """Write a safetensors file with a head that claims a length, and the size of its tensors."""
    path.write_bytes(struct.pack("<Q", len(head) if length is None else length) + head)
    os.truncate(path, path.stat().st_size + size)


def tensor(shape: list[int], num_bytes: int) -> bytes:
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, num_bytes]}
    return json.dumps({"norm.weight": entry}).encode()


@pytest.mark.parametrize(
    ("head", "length", "size"),
    [
        (b"{}", 1 << 62, 0),
        (b"{}", 100_000_000, 200_000_000),
        (b"[" * 100_000, None, 0),
        (tensor([1 << 40], 1 << 42), None, 0),
        (tensor([1 << 62, 4], 1 << 63), None, 64),
        (tensor([4_000_000_000], 16_000_000_000), None, 16_000_000_000),
    ],
)
def test_absurd_heads_of_weights_are_refused(
    root: Path, head: bytes, length: int | None, size: int
) -> None:
    folder = root / "tiny" / "2"
    path = folder / TRANSFORMER_FILE
    write_head(path, head, length, size)
    refuse = Registry(root).verify if size > 1 << 30 else lambda *_: read_tensors(path)
    with pytest.raises(ArtifactError, match=r"transformer\.safetensors: cannot be read"):
        refuse("tiny", "2")


def test_tensors_of_another_shape_are_not_even_looked_at(root: Path) -> None:
    folder = root / "tiny" / "2"
    write_head(folder / TRANSFORMER_FILE, tensor([500_000], 2_000_000), size=2_000_000)
    list_anew(folder, TRANSFORMER_FILE)
    Registry(root).verify("tiny", "2")
    with pytest.raises(ArtifactError, match=r"the tensor \w+.* is not in it"):
        load_bundle(folder)


def test_the_limits_leave_room_for_what_is_published(published: Path) -> None:
    for folder in (
        published / "tiny" / "1",
        Path(__file__).parents[3] / "models" / "cifar10" / "1",
    ):
        manifest: Manifest = read_manifest(folder)
        verify_files(folder, manifest)
        for name in manifest.files:
            size = (folder / name).stat().st_size
            assert size <= manifest.max_bytes(name) < 1 << 30, name
