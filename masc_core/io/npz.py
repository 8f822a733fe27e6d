"""Named arrays in one NumPy ``.npz`` file: written whole or not at all, read without pickle.

Equal arrays give equal bytes, so the hash of such a file identifies its content.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from masc_core.errors import ArtifactError
from masc_core.io.files import atomic_path, reading, writing

Array = npt.NDArray[Any]

# Everything that zipfile and numpy raise on a damaged or hostile archive.
DAMAGE = (
    ValueError,
    KeyError,
    EOFError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    SyntaxError,
    TokenError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def save_npz(path: str | PathLike[str], **arrays: npt.ArrayLike) -> None:
    """Write the arrays under their names to exactly ``path``, replacing it in one step.

    An `ArtifactError` says that it cannot be written; what was there before is untouched.
    """
    members: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in members.items():
        if array.dtype.hasobject:
            raise TypeError(f"array {name!r} holds Python objects, which only pickle can store")
    with writing(path), atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **members)  # given a path, it would append a suffix


def load_npz(
    path: str | PathLike[str], names: Iterable[str], optional: Iterable[str] = ()
) -> dict[str, Array]:
    """Read the named arrays; others in the file are ignored.

    Parameters
    ----------
    path : the file
    names : of the arrays that it must hold
    optional : of those that it may lack

    Raises
    ------
    ArtifactError : the file is missing, damaged, of another kind, or lacks one of the arrays
    """
    # Given a path, NumPy leaves a damaged file open.
    with reading(path), Path(path).open("rb") as file:
        return read_npz(file, path, names, optional)


def read_npz(
    file: IO[bytes],
    path: str | PathLike[str],
    names: Iterable[str],
    optional: Iterable[str] = (),
) -> dict[str, Array]:
    """Read the named arrays, as `load_npz` does, of an open file that errors call ``path``."""
    try:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ArtifactError(path, "is not an .npz file")
        with archive:
            present = [*names, *(name for name in optional if name in archive)]
            return {name: _read(path, archive, name) for name in present}
    except DAMAGE as error:
        raise ArtifactError(path, "is not an .npz file, or is damaged") from error


def _read(path: str | PathLike[str], archive: np.lib.npyio.NpzFile, name: str) -> Array:
    if name not in archive:
        raise ArtifactError(path, f"holds no array {name!r}")
    try:
        array = archive[name]
    except DAMAGE as error:
        raise ArtifactError(path, f"array {name!r} is damaged: {error}") from error
    if not isinstance(array, np.ndarray):  # a member without the .npy magic comes as raw bytes
        raise ArtifactError(path, f"{name!r} is not an array")
    return array
