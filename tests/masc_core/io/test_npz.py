from __future__ import annotations

import shutil
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from masc_core.errors import ArtifactError
from masc_core.io.npz import load_npz, save_npz
from tests.hostile_files import memory_below, packed_zeros, sparse, write_prior

load = partial(load_npz, max_bytes=1 << 20)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "arrays.npz"
    save_npz(path, numbers=np.arange(5), scale=2.5)
    return path


def test_round_trip(path: Path) -> None:
    arrays = load(path, ["numbers", "scale"])
    assert arrays["numbers"].tolist() == [0, 1, 2, 3, 4]
    assert arrays["numbers"].dtype == np.int64
    assert arrays["scale"].shape == ()
    assert arrays["scale"] == 2.5


def test_reads_compressed_files(tmp_path: Path) -> None:
    path = tmp_path / "compressed.npz"
    np.savez_compressed(path, numbers=np.arange(1000))
    assert load(path, ["numbers"])["numbers"].sum() == 499_500


def test_name_is_kept_as_given(tmp_path: Path) -> None:
    save_npz(tmp_path / "prior.bin", numbers=np.arange(3))
    assert [entry.name for entry in tmp_path.iterdir()] == ["prior.bin"]


def test_equal_arrays_give_equal_bytes(path: Path) -> None:
    before = path.read_bytes()
    save_npz(path, numbers=np.arange(5), scale=2.5)
    assert path.read_bytes() == before


def test_failed_write_leaves_the_old_file_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_npz(path, numbers=np.arange(9))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_unwritable_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nowhere.x\.npz: cannot be written: No such file"):
        save_npz(tmp_path / "nowhere" / "x.npz", numbers=np.arange(3))


def test_python_objects_are_refused(path: Path) -> None:
    with pytest.raises(TypeError, match="'things' holds Python objects"):
        save_npz(path, things=np.array([{}], dtype=object))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"gone\.npz: cannot be read: No such file"):
        load(tmp_path / "gone.npz", ["numbers"])


def test_missing_array_is_named(path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no array 'mapping'"):
        load(path, ["mapping"])


def test_optional_arrays_may_be_absent(path: Path) -> None:
    found = load(path, ["numbers"], optional=["scale", "units"])
    assert found.keys() == {"numbers", "scale"}


def test_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        load(tmp_path, ["numbers"])


@pytest.mark.parametrize("content", [b"", b"numbers", b"\x80\x04N.", b"PK\x03\x04" + bytes(40)])
def test_other_kinds_of_file_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"is not an \.npz file"):
        load(path, ["numbers"])


def test_single_array_file_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.arange(3))
    with pytest.raises(ArtifactError, match=r"is not an \.npz file"):
        load(tmp_path / "one.npy", ["numbers"])


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "pickled.npz"
    np.savez(path, numbers=np.array([{}], dtype=object))
    with pytest.raises(ArtifactError, match="array 'numbers' is damaged"):
        load(path, ["numbers"])


def test_member_that_is_no_array_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "numbers.npy").write_bytes(b"text")
    path = Path(shutil.make_archive(str(tmp_path / "text"), "zip", tmp_path / "folder"))
    with pytest.raises(ArtifactError, match="array 'numbers' is damaged: EOF"):
        load(path, ["numbers"])


def test_every_truncation_is_refused(path: Path) -> None:
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ArtifactError, match=r"arrays\.npz"):
            load(path, ["numbers", "scale"])


def test_flipped_bytes_are_refused_or_harmless(path: Path) -> None:
    content = path.read_bytes()
    refused = 0
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        try:
            arrays = load(path, ["numbers", "scale"])
        except ArtifactError:
            refused += 1
        else:  # time stamps and the like, which say nothing of the content
            assert arrays["numbers"].tolist() == [0, 1, 2, 3, 4]
            assert arrays["scale"] == 2.5
    assert refused > len(content) // 2


def test_a_header_that_is_no_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    save_npz(path, numbers=np.arange(8192))  # so many that the header is read before the checksum
    path.write_bytes(path.read_bytes().replace(b"(8192,), }", b"(8192,(, }"))
    with pytest.raises(ArtifactError, match="'numbers' is damaged"):
        load(path, ["numbers"])


@pytest.mark.parametrize(
    "mapping",
    [
        pytest.param(packed_zeros("(100000000,)", size=10**8), id="more than is allowed"),
        pytest.param(packed_zeros("(100000,)"), id="fewer bytes than the head says"),
        pytest.param(packed_zeros("(10,)", size=10**7), id="more bytes than the head says"),
        pytest.param(packed_zeros("(-1, -8)", size=8), id="negative sizes"),
        pytest.param(packed_zeros("()", "<U250000000"), id="one long text"),
        pytest.param(packed_zeros("(1000000000000,)", "<i8"), id="8 TB"),
        pytest.param(b"\x93NUMPY\x03\x00" + b"\xff\xff\x7f\x00" + bytes(10**7), id="a long head"),
        pytest.param(packed_zeros("(" * 9000), id="a nested head"),
    ],
)
def test_what_an_array_takes_is_known_before_it_is_unpacked(tmp_path: Path, mapping: bytes) -> None:
    path = tmp_path / "prior.npz"
    write_prior(path, mapping)
    assert path.stat().st_size < 1 << 20
    with (
        memory_below(8 << 20),
        pytest.raises(ArtifactError, match=r"prior\.npz: array 'mapping' is damaged: "),
    ):
        load(path, ["mapping", "k", "n"])


def test_sizes_in_the_archive_that_lie_are_found_out(tmp_path: Path) -> None:
    path = tmp_path / "prior.npz"
    zeros = packed_zeros("(100000,)", size=100_000)
    write_prior(path, zeros)
    size = len(zeros).to_bytes(4, "little")
    lie = len(packed_zeros("(1000,)", size=1000)).to_bytes(4, "little")
    content = path.read_bytes().replace(size, lie)
    assert content.count(lie) == 2
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="array 'mapping' is damaged"):
        load(path, ["mapping"])
    path.write_bytes(content.replace(b"(100000,), }", b"(1000,), }  "))
    with pytest.raises(ArtifactError, match="array 'mapping' is damaged"):
        load(path, ["mapping"])


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_packing_is_refused(tmp_path: Path, packing: int) -> None:
    path = tmp_path / "prior.npz"
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("mapping.npy", packed_zeros("(10,)", size=10))
    with pytest.raises(ArtifactError, match="packed in an unusual way"):
        load(path, ["mapping"])


def test_a_file_far_larger_than_its_arrays_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "prior.npz"
    sparse(path, 3_000_000_000)
    with memory_below(1 << 20), pytest.raises(ArtifactError, match="more than 2,097,152"):
        load(path, ["mapping"])
