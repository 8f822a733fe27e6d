from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from masc_core.errors import ArtifactError
from masc_core.models.weights import save_model
from tests.tiny_bundle import save_tiny_bundle, tiny_parts
from training.data.codebook_source import TrainedTokenizer, read_rows

ROWS = np.random.default_rng(0).normal(size=(24, 4))


def npy(array: npt.ArrayLike) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(array: npt.ArrayLike) -> bytes:
    file = io.BytesIO()
    np.savez(file, rows=array)
    return file.getvalue()


def with_row(number: int, value: float) -> npt.NDArray[np.float64]:
    rows = ROWS.copy()
    rows[number, 1] = value
    return rows


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    save_tiny_bundle(tmp_path)
    return tmp_path / "tiny" / "1"


def test_rows_of_a_tokenizer_are_normalised_unless_asked_for_raw(tmp_path: Path) -> None:
    model = tiny_parts().tokenizer
    weight = model.quantize.embedding.weight
    weight.data *= torch.arange(1, len(weight) + 1)[:, None]
    save_model(tmp_path / "t.safetensors", model)
    stored = weight.detach().double().numpy()
    assert np.array_equal(read_rows(tmp_path / "t.safetensors", raw=True), stored)
    rows = read_rows(tmp_path / "t.safetensors", raw=False)
    assert rows.dtype == np.float64
    assert np.allclose(rows, stored / np.linalg.norm(stored, axis=1, keepdims=True), atol=1e-6)


def test_rows_of_a_bundle_are_those_of_its_tokenizer(bundle: Path) -> None:
    weight = tiny_parts().tokenizer.quantize.embedding.weight
    stored = weight.detach().half().double().numpy()  # the precision that bundles are written in
    assert np.array_equal(read_rows(bundle, raw=True), stored)
    normalised = stored / np.linalg.norm(stored, axis=1, keepdims=True)
    assert np.allclose(read_rows(bundle, raw=False), normalised, atol=1e-6)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int8])
def test_rows_of_an_array_are_taken_as_they_are(
    tmp_path: Path, dtype: npt.DTypeLike, *, raw: bool
) -> None:
    array = (3 * ROWS).astype(dtype)
    np.save(tmp_path / "c.npy", np.asfortranarray(array))
    rows = read_rows(tmp_path / "c.npy", raw=raw)
    assert rows.dtype == np.float64
    assert np.array_equal(rows, array)


def test_a_tokenizer_knows_where_it_came_from(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_model(path, tiny_parts().tokenizer)
    from_file, from_bundle = TrainedTokenizer.open(path), TrainedTokenizer.open(bundle)
    assert (from_file.name, from_bundle.name) == (str(path), "tiny 1")
    assert from_file.sha256 != from_bundle.sha256
    assert TrainedTokenizer.open(path, with_encoder=True).sha256 == from_file.sha256
    with pytest.raises(ArtifactError, match=r"has no encoder: .*--decoder makes one"):
        TrainedTokenizer.open(bundle, with_encoder=True)


def test_the_folder_of_a_run_is_its_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.safetensors"
    save_model(path, tiny_parts().tokenizer)
    assert TrainedTokenizer.open(tmp_path).sha256 == TrainedTokenizer.open(path).sha256


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (npy(with_row(3, np.nan)), "row 3 has a NaN or an infinity"),
        (npy(with_row(5, -np.inf)), "row 5 has a NaN or an infinity"),
        (npy(ROWS[:1]), "at least two rows, got 1"),
        (npy(ROWS[:0]), "at least two rows, got 0"),
        (npy(ROWS[0]), r"shape \(V, E\), got \(4,\)"),
        (npy(ROWS[:, :0]), r"shape \(V, E\), got \(24, 0\)"),
        (npy(np.float64(1)), r"shape \(V, E\), got \(\)"),
        (npy(ROWS[None]), r"shape \(V, E\), got \(1, 24, 4\)"),
        (npy(ROWS.astype(complex)), "real numbers, got complex128"),
        (npy([["a", "b"], ["c", "d"]]), "real numbers, got <U1"),
        (npy(np.array([[1, {}], [2, 3]], dtype=object)), "is not an .npy array of numbers"),
        (np.array([[1.0, 2.0]]).dumps(), "is not an .npy array"),
        (npz(ROWS), "is not an .npy array"),
        (b"PK\x03\x04" + bytes(100), "is not an .npy array"),
        (npy(ROWS)[:300], "or is damaged"),
        (npy(ROWS)[:50], "or is damaged"),
        (npy(ROWS).replace(b"(24, 4), ", b"(24, 4(, "), "or is damaged"),
        (npy(ROWS).replace(b"(24, 4), }" + b" " * 9, b"(24" + b"0" * 12 + b", 4)}"), "damaged"),
        (b"", "is not an .npy array"),
        (b"1 2 3\n", "is not an .npy array"),
    ],
    ids=[
        *("nan", "infinity", "one-row", "no-rows", "one-dimension", "no-columns", "scalar"),
        *("three-dimensions", "complex", "text", "objects", "pickle", "archive", "broken-archive"),
        *("cut-rows", "cut-header", "broken-header", "petabytes", "empty", "not-numpy"),
    ],
)
def test_an_array_that_is_no_codebook(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "codebook.npy"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=reason) as refused:
        read_rows(path, raw=False)
    assert refused.value.path == str(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["missing.npy", "missing.safetensors"])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match=f"{name}.*No such file"):
        read_rows(tmp_path / name, raw=False)


def test_a_folder_called_like_an_array(tmp_path: Path) -> None:
    (tmp_path / "c.npy").mkdir()
    with pytest.raises(ArtifactError, match=r"c\.npy: cannot be read: not a regular file"):
        read_rows(tmp_path / "c.npy", raw=False)


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer\.safetensors: cannot be read"):
        read_rows(tmp_path, raw=False)


def test_a_damaged_bundle(bundle: Path) -> None:
    path = bundle / "tokenizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"tokenizer\.safetensors: "):
        read_rows(bundle, raw=False)
