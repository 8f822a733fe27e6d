from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from masc_core.errors import ArtifactError, ConfigError
from tests.training.data.image_sets import png, write_parquet
from training.data import parquet
from training.data.parquet import ParquetImages

IMAGES = [png(i) for i in range(7)]
LABELS = [0, 2, 1, 0, 1, 2, 2]


def test_names_come_from_the_metadata_whatever_the_columns(tmp_path: Path) -> None:
    columns = ("img", "fine_label")
    path = write_parquet(tmp_path / "a.parquet", IMAGES, LABELS, ["x", "y", "z", "none"], columns)
    images = ParquetImages.scan(path, [path])
    assert images.class_names == ("x", "y", "z", "none")
    assert images.labels.tolist() == LABELS
    assert [images.encoded(i) for i in (6, 0, 3)] == [IMAGES[6], IMAGES[0], IMAGES[3]]
    assert images.name(5) == f"{path}:2:1"


def test_without_metadata_classes_are_numbers(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", IMAGES, LABELS)
    assert ParquetImages.scan(path, [path]).class_names == ("0", "1", "2")
    (tmp_path / "classes.txt").write_text("zero\none\ntwo\n")
    assert ParquetImages.scan(path, [path]).class_names == ("zero", "one", "two")


def test_only_the_last_row_groups_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(IMAGES[0])
    monkeypatch.setattr(parquet, "KEPT_BYTES", 5 * size)
    paths = [
        write_parquet(tmp_path / f"{name}.parquet", IMAGES[part], LABELS[part], "xyz")
        for name, part in (("a", slice(0, 3)), ("b", slice(3, 7)))
    ]
    images = ParquetImages.scan(tmp_path, paths)
    order = np.random.default_rng(0).integers(0, 7, 60).tolist()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(images.encoded, order)) == [IMAGES[i] for i in order]
    kept = images.groups._kept
    assert sum(group.nbytes for group in kept.values()) == images.groups._bytes <= 5 * size
    images.encoded(0)
    for path in paths:
        path.unlink()
    assert images.encoded(1) == IMAGES[1]


def test_rows_without_bytes_and_damaged_pages_are_unreadable(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [IMAGES[0], None, b"?"], [0, 1, 0], rows=3)
    found = ParquetImages.scan(path, [path]).read(16)
    assert found.labels.tolist() == [0]
    assert [name.rpartition(":")[2] for name in found.skipped] == ["1", "2"]
    path = write_parquet(tmp_path / "b.parquet", IMAGES, LABELS)
    images = ParquetImages.scan(path, [path])
    content = bytearray(path.read_bytes())
    content[4 : 4 + 200] = bytes(200)
    path.write_bytes(content)
    assert images.decode(0) is None
    assert images.decode(6) is not None
    path.unlink()
    with pytest.raises(ArtifactError, match="cannot be read any more"):
        ParquetImages.read(images, 16)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"picture": [1], "label": [0]}, "has no column 'image'; its columns are picture, label"),
        ({"image": [{"bytes": b""}], "class": [0]}, "has no column 'label'"),
        ({"image": [{"bytes": "x"}], "label": [0]}, "holds no encoded images, but struct"),
        ({"image": [[{"bytes": b""}]], "label": [0]}, "holds no encoded images, but list"),
        ({"image": ["x"], "label": [0]}, "column 'image' holds no encoded images, but string"),
        ({"image": [{"path": ""}], "label": [0]}, "holds no encoded images, but struct"),
        ({"image": [{"bytes": b""}], "label": ["cat"]}, "holds no class numbers, but string"),
        ({"image": [{"bytes": b""}] * 2, "label": [0, None]}, "1 of its images have no label"),
        ({"image": [{"bytes": b""}] * 2, "label": [0, -1]}, "row 1 has the label -1"),
    ],
)
def test_a_file_of_other_columns_is_refused(
    tmp_path: Path, table: dict[str, list[object]], message: str
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(table), path)
    with pytest.raises(ArtifactError, match=message) as caught:
        ParquetImages.scan(path, [path])
    assert str(caught.value).startswith(f"{path}: ")


def test_labels_outside_the_class_list_are_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", IMAGES, LABELS, ["x", "y"])
    with pytest.raises(ArtifactError, match="row 1 has the label 2, which is none of 2 classes"):
        ParquetImages.scan(path, [path])


def test_damaged_and_empty_files_are_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", IMAGES, LABELS)
    content = path.read_bytes()
    for damaged in (content[:-9], content[:100], b"", b"hello"):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"a\.parquet: is no parquet file"):
            ParquetImages.scan(path, [path])
    write_parquet(path, [], [])
    with pytest.raises(ConfigError, match="hold no images"):
        ParquetImages.scan(path, [path])


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    paths = [
        write_parquet(tmp_path / "a.parquet", IMAGES, LABELS, ["x", "y", "z"]),
        write_parquet(tmp_path / "b.parquet", IMAGES, LABELS, ["x", "z", "y"]),
    ]
    with pytest.raises(
        ConfigError,
        match=r"b\.parquet: is not as .*a\.parquet: class_names has ",
    ):
        ParquetImages.scan(tmp_path, paths)


def test_splits_are_not_mixed(tmp_path: Path) -> None:
    names = ("train-00000-of-00002-abc", "train-00001-of-00002-def", "test-00000-of-00001")
    paths = [write_parquet(tmp_path / f"{name}.parquet", IMAGES, LABELS) for name in names]
    with pytest.raises(ConfigError, match=r"splits test, train; name one of them, as .*test-\*\."):
        ParquetImages.scan(tmp_path, paths)
    assert len(ParquetImages.scan(tmp_path, paths[:2])) == 14


@pytest.mark.parametrize("text", ["{", "[]", '{"info": null}', json.dumps({"info": {}})])
def test_strange_metadata_is_no_metadata(tmp_path: Path, text: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", IMAGES, LABELS)
    table = pq.read_table(path).replace_schema_metadata({"huggingface": text})
    pq.write_table(table, path)
    assert ParquetImages.scan(path, [path]).class_names == ("0", "1", "2")


def test_a_name_of_several_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    arrays = [pa.array([{"bytes": IMAGES[0]}]), pa.array([0]), pa.array([1])]
    pq.write_table(pa.Table.from_arrays(arrays, names=["image", "label", "label"]), path)
    with pytest.raises(ArtifactError, match=r"a\.parquet: has several columns 'label'"):
        ParquetImages.scan(path, [path])


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_bytes_of_every_kind_are_images(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": pa.array(IMAGES[:2], kind), "label": [0, 1]}), path)
    assert ParquetImages.scan(path, [path]).encoded(1) == IMAGES[1]
