"""Data and weights of strangers: each reader refuses in one line, in little time and memory."""

from __future__ import annotations

import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from masc_core.errors import ArtifactError, MascError
from masc_core.models.weights import load_transformer, read_inputs
from tests.hostile_files import IRREGULAR, memory_below, packed_zeros, sparse
from tests.training.data.image_sets import png, write_parquet, write_tar
from training.config import StageConfig, load_config
from training.data import parquet
from training.data.code_cache import read_index, read_shard
from training.data.codebook_source import read_rows
from training.data.images import ImageFolder
from training.data.parquet import ParquetImages
from training.data.source import MAX_PIXELS, read_class_table
from training.data.tar_shards import TarShards
from training.loop.checkpoint import checkpoint_config
from training.metrics.classifier import classifier_accuracy
from training.pretrained.checkpoint_file import CheckpointFile
from training.pretrained.class_names import read_class_names
from training.pretrained.iar import read_mapping
from training.studies.acceleration import read_curve
from training.torch_file import read_torch_file

READERS: dict[str, Callable[[Path], object]] = {
    "a.tar": lambda path: TarShards.scan(path, [path]),
    "a.parquet": lambda path: ParquetImages.scan(path, [path]),
    "a.toml": lambda path: load_config(StageConfig, path, {}),
    "classes.txt": lambda path: read_class_names(5, path),
    "index.json": lambda path: read_index(path.parent),
    "shard-00000.json": lambda path: read_shard(path.parent, 0),
    "rows.npy": lambda path: read_rows(path, raw=True),
    "tokenizer.safetensors": lambda path: read_rows(path, raw=True),
    "gpt.safetensors": CheckpointFile.open,
    "gpt.pt": CheckpointFile.open,
    "mapping.pt": read_mapping,
    "transformer.safetensors": load_transformer,
    "state.json": lambda path: checkpoint_config(path.parent),
    "metrics.json": lambda path: classifier_accuracy(path.parent),
    "log.jsonl": lambda path: read_curve(path, "loss"),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", sorted(IRREGULAR.keys() - {"folder"}))
def test_what_is_no_file_keeps_nobody_waiting(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    IRREGULAR[kind](path)
    with pytest.raises(MascError, match=name.partition(".")[0]) as caught:
        READERS[name](path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", READERS)
def test_a_sparse_file_is_not_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    sparse(path, 5_000_000_000)
    with memory_below(16 << 20), pytest.raises(MascError, match=name.partition(".")[0]):
        READERS[name](path)


@pytest.mark.parametrize("kind", sorted(IRREGULAR))
def test_images_that_are_no_files_are_skipped(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "set" / "cat"
    folder.mkdir(parents=True)
    IRREGULAR[kind](folder / "a.png")
    (folder / "b.png").write_bytes(png(1))
    sparse(folder / "c.png", 5_000_000_000)
    images = ImageFolder.scan(tmp_path / "set").read(16)
    assert len(images.labels) == 1
    entered = ["c.png"]  # a folder is no image, whatever it is called, but may hold some
    skipped = entered if kind == "folder" else ["a.png", "c.png"]
    assert [Path(name).name for name in images.skipped] == skipped


def test_a_bomb_of_pixels_is_skipped(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5) + 1
    folder = tmp_path / "set" / "cat"
    folder.mkdir(parents=True)
    Image.new("1", (side, side)).save(folder / "a.png")
    assert (folder / "a.png").stat().st_size < 1 << 20
    (folder / "b.png").write_bytes(png(1))
    with memory_below(1 << 24), pytest.warns(match="exceeds limit"):
        assert len(ImageFolder.scan(tmp_path / "set").read(16).skipped) == 1


def test_a_table_of_classes_that_is_no_file_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "classes.txt")
    assert read_class_table(tmp_path) == ()
    (tmp_path / "classes.txt").unlink()
    sparse(tmp_path / "classes.txt", 5_000_000_000)
    with memory_below(1 << 20), pytest.raises(ArtifactError, match=r"classes\.txt: cannot be read"):
        read_class_table(tmp_path)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"label":' * 100_000])
def test_a_label_that_is_nested_deeply_is_none(tmp_path: Path, content: bytes) -> None:
    path = write_tar(tmp_path / "a.tar", [("0.png", png(0)), ("0.json", content)])
    with pytest.raises(ArtifactError, match=r"a\.tar: 0\.json names no class"):
        TarShards.scan(path, [path])


def member(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The head of a member, and no content."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (member("0.cls", 5 * 10**9), "0.cls has 5,000,000,000 bytes"),
        (member("0.json", 5 * 10**9), "0.json has 5,000,000,000 bytes"),
        (member("0.png", 5 * 10**9), "0.png has 5,000,000,000 bytes"),
        (member("0.cls", 5 * 10**9, tarfile.GNUTYPE_LONGNAME), "a name in it has 5,0"),
        (member("0.cls", 5 * 10**9, tarfile.XHDTYPE), "a name in it has 5,0"),
        (member("0.txt", -(2**40)), r"0.txt has -1099511627776 bytes|bad checksum"),
        (member("0", 512, tarfile.GNUTYPE_LONGNAME) * 3000, "is no whole"),
    ],
)
def test_sizes_in_a_tar_are_bounded(tmp_path: Path, head: bytes, reason: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(head)
    os.truncate(path, len(head) + 6 * 10**9)
    with memory_below(16 << 20), pytest.raises(ArtifactError, match=rf"a\.tar: .*{reason}"):
        TarShards.scan(path, [path])


@pytest.mark.parametrize("limit", ["MAX_ROWS", "MAX_GROUP_BYTES"])
def test_rows_and_groups_of_a_parquet_file_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    path = write_parquet(tmp_path / "a.parquet", [png(i) for i in range(8)], [0] * 8)
    monkeypatch.setattr(parquet, limit, 7)
    with pytest.raises(ArtifactError, match=r"a\.parquet: has 8 rows, in groups of"):
        ParquetImages.scan(path, [path])


@pytest.mark.parametrize("metadata", ["[" * 100_000, '{"info": {"features": [1]}}'])
def test_metadata_that_is_none_counts_as_absent(tmp_path: Path, metadata: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", [png(0)], [0])
    table = pq.read_table(path).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, path)
    assert ParquetImages.scan(path, [path]).class_names == ("0",)


def test_a_packed_torch_file_is_not_unpacked(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.pt", tmp_path / "packed.pt"
    torch.save({"model": {"a": torch.zeros(10)}}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            content = bytes(10**8) if info.filename.endswith("data/0") else old.read(info)
            new.writestr(info.filename, content)
    assert packed.stat().st_size < 1 << 20
    with pytest.raises(ArtifactError, match=r"is not a file of torch\.save"):
        read_torch_file(packed)


def test_a_tensor_without_numbers_of_its_own_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gpt.pt"
    torch.save({"model": {"tok_embeddings.weight": torch.zeros(1).expand(10**6, 10**6)}}, path)
    assert path.stat().st_size < 1 << 14
    with pytest.raises(ArtifactError, match="has more numbers than the file"):
        CheckpointFile.open(path)


def test_a_config_that_is_nested_deeply_is_no_toml(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("a = " + "[" * 100_000)
    with pytest.raises(MascError, match=r"a\.toml: is not TOML"):
        load_config(StageConfig, tmp_path / "a.toml", {})


@pytest.mark.parametrize(
    "sizes",
    ["[" * 100_000, '{"n_layer": 1000000000, "vocab_size": 4, "dim": 8, "n_head": 1}', "[1]"],
)
def test_sizes_in_the_head_of_a_transformer_are_bounded(tmp_path: Path, sizes: str) -> None:
    path = tmp_path / "transformer.safetensors"
    write_safetensors(path, {"kind": "transformer", "config": sizes, "inputs": sizes})
    with pytest.raises(ArtifactError, match="has a header of another program"):
        load_transformer(path)
    if sizes.startswith("["):
        with pytest.raises(ArtifactError, match="has a header of another program"):
            read_inputs(path)


def write_safetensors(path: Path, metadata: dict[str, Any]) -> None:
    head = json.dumps({"__metadata__": metadata}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head)


def test_rows_of_a_codebook_fill_their_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    path.write_bytes(packed_zeros("(1000000000, 8)", "<f8", size=100))
    with memory_below(1 << 20), pytest.raises(ArtifactError, match=r"rows\.npy: is not an \.npy"):
        read_rows(path, raw=True)
