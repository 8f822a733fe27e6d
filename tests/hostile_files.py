"""Files that do harm to who reads them unprepared; none takes more than some KB of the disk."""

from __future__ import annotations

import io
import os
import socket
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tracemalloc import get_traced_memory, start, stop

import numpy as np


def sparse(path: Path, size: int) -> None:
    """A file of zeros."""
    with path.open("wb") as file:
        file.truncate(size)


def bound_socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the address of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(before)


def link_to_fifo(path: Path) -> None:
    os.mkfifo(f"{path}.fifo")
    path.symlink_to(f"{path}.fifo")


# Whoever opens or reads one of these waits, or does not come to an end.
def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


IRREGULAR: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "link to a fifo": link_to_fifo,
    "folder": Path.mkdir,
    "socket": bound_socket,
}


def packed_zeros(shape: str, dtype: str = "|u1", size: int = 0) -> bytes:
    """An ``.npy`` file of zeros, as a member of an ``.npz`` file that is a thousandth of it."""
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(size)


def write_prior(path: Path, mapping: bytes, k: int = 1, n: int = 1) -> None:
    """A prior with this content as its ``mapping.npy``."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mapping.npy", mapping)
        for name, number in (("k", k), ("n", n)):
            file = io.BytesIO()
            np.save(file, number)
            archive.writestr(f"{name}.npy", file.getvalue())


@contextmanager
def unprivileged() -> Iterator[None]:
    """Run the block as a user whom permissions keep out, if this one is root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    """Fail where the block has more than so many bytes of Python's and NumPy's memory at once."""
    start()
    try:
        yield
        _, peak = get_traced_memory()
    finally:
        stop()
    assert peak < limit, f"{peak:,} bytes"
