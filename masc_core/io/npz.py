"""Named arrays in one NumPy ``.npz`` file: written whole or not at all, read without pickle.

Equal arrays give equal bytes, so the hash of such a file identifies its content. What a file
says of an array's size is checked before it is unpacked: 100 KB can stand for any number of zeros.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from os import PathLike
from tokenize import TokenError
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from masc_core.errors import ArtifactError
from masc_core.io.bounded import open_file
from masc_core.io.files import atomic_path, reading, writing

Array = npt.NDArray[Any]
MAX_OVERHEAD = 1 << 20  # of a file beyond its arrays

# Everything that zipfile and numpy raise on a damaged or hostile archive.
DAMAGE = (
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
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
    path: str | PathLike[str],
    names: Sequence[str],
    optional: Sequence[str] = (),
    *,
    max_bytes: int,
) -> dict[str, Array]:
    """Read the named arrays; others in the file are ignored.

    Parameters
    ----------
    path : the file
    names : of the arrays that it must hold
    optional : of those that it may lack
    max_bytes : the most that an array may take in memory

    Raises
    ------
    ArtifactError : the file is missing, damaged, of another kind, lacks one of the arrays, or has a
        larger one
    """
    most = (len(names) + len(optional)) * max_bytes + MAX_OVERHEAD
    with reading(path), open_file(path, most) as file:
        return read_npz(file, path, names, optional, max_bytes=max_bytes)


def read_npz(
    file: IO[bytes],
    path: str | PathLike[str],
    names: Sequence[str],
    optional: Sequence[str] = (),
    *,
    max_bytes: int,
) -> dict[str, Array]:
    """Read the named arrays, as `load_npz` does, of an open file that errors call ``path``."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            present = [*names, *(name for name in optional if name in members)]
            return {name: _read(path, archive, members, name, max_bytes) for name in present}
    except DAMAGE as error:
        raise ArtifactError(path, "is not an .npz file, or is damaged") from error


def read_npy(file: IO[bytes], size: int, max_bytes: int) -> Array:
    """Read the array of an ``.npy`` file of ``size`` bytes; one of `DAMAGE` where it has none."""
    check_npy(file, size, max_bytes)
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def check_npy(file: IO[bytes], size: int, max_bytes: int) -> None:
    """Raise a ValueError unless a file of ``size`` bytes is one array of at most ``max_bytes``.

    Only its head is read: what it says of the array is what memory is asked for.
    """
    # Newer versions are for names of fields; the length of their head is not bounded.
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("it is no array of plain numbers")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    num_bytes = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError(f"it holds {dtype} {shape}")
    if num_bytes > max_bytes:
        raise ValueError(f"{dtype} {shape} takes more than {max_bytes:,} bytes")
    if file.tell() + num_bytes != size:
        raise ValueError(f"{dtype} {shape} does not have the {size:,} bytes of its file")


def _read(
    path: str | PathLike[str],
    archive: zipfile.ZipFile,
    members: Mapping[str, zipfile.ZipInfo],
    name: str,
    max_bytes: int,
) -> Array:
    if name not in members:
        raise ArtifactError(path, f"holds no array {name!r}")
    info = members[name]
    try:
        # Unpacking the other kinds takes as much memory as the file asks for.
        if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise ValueError("it is packed in an unusual way")
        with archive.open(info) as member:
            return read_npy(member, info.file_size, max_bytes)
    except DAMAGE as error:
        reason, _, _ = str(error).partition("\n")  # NumPy goes on with advice to programmers
        raise ArtifactError(path, f"array {name!r} is damaged: {reason}") from error
