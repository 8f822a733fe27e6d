"""The same few images as class folders, as tar shards and as parquet files."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from training.data.images import ImageFolder


def png(seed: int, size: tuple[int, int] = (16, 16)) -> bytes:
    """An image file of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """A tar file of so named contents, in that order."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[int | None],
    class_names: Sequence[str] = (),
    columns: tuple[str, str] = ("image", "label"),
    rows: int = 2,
) -> Path:
    """A parquet file as ``datasets`` writes it, ``rows`` images a row group."""
    cells = [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    arrays = [pa.array(cells, kind), pa.array(labels, pa.int64())]
    table = pa.table(dict(zip(columns, arrays, strict=True)))
    if class_names:
        features = {
            columns[0]: {"_type": "Image"},
            columns[1]: {"names": list(class_names), "_type": "ClassLabel"},
        }
        metadata: Mapping[str, str] = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=rows)
    return path


def as_tars(folder: ImageFolder, root: Path, shard: int = 5) -> Path:
    """The images of a folder in tar shards, with their class names beside them."""
    root.mkdir()
    for start in range(0, len(folder), shard):
        members = []
        for i in range(start, min(start + shard, len(folder))):
            members += [
                (f"{i:04d}.png", folder.encoded(i)),
                (f"{i:04d}.cls", b"%d\n" % folder.labels[i]),
            ]
        write_tar(root / f"part-{start // shard:03d}.tar", members)
    (root / "classes.txt").write_text("\n".join(folder.class_names))
    return root


def as_parquet(folder: ImageFolder, root: Path, file: int = 5) -> Path:
    """The images of a folder in parquet files."""
    root.mkdir()
    total = -(-len(folder) // file)
    for number in range(total):
        rows = range(number * file, min((number + 1) * file, len(folder)))
        write_parquet(
            root / f"train-{number:05d}-of-{total:05d}.parquet",
            [folder.encoded(i) for i in rows],
            [int(folder.labels[i]) for i in rows],
            folder.class_names,
        )
    return root
