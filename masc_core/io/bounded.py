"""Reading what others may have written: regular files alone, and never more than a limit.

A FIFO keeps whoever opens it waiting, a device has no end, and a sparse file of any size costs its
author nothing. A link to a regular file is one: Kubernetes mounts volumes as links.
"""

from __future__ import annotations

import codecs
import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from masc_core.escapes import MAX_NAME, shorten

MAX_CODES = 1 << 20  # of a codebook; the largest that are published have a quarter of it
MAX_TEXT_BYTES = 64 << 20  # of a text or JSON file, unless its kind has a limit of its own
# Marks at the beginning of a file; that of UTF-32 begins with that of UTF-16.
WIDE_TEXT = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}


def open_file(path: str | os.PathLike[str], max_bytes: int | None = None) -> BinaryIO:
    """Open a regular file; an `OSError` where it is something else, or has more bytes."""
    _check(Path(path).stat(), path, max_bytes)  # to open a device can have effects of its own
    return os.fdopen(_open(path, os.O_RDONLY, max_bytes), "rb")


def open_lock(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to be locked, which is made if need be; an `OSError` where it is something else.

    Its content stays as it is.
    """
    return os.fdopen(_open(path, os.O_WRONLY | os.O_CREAT), "wb")


def check_file(path: str | os.PathLike[str], max_bytes: int | None = None) -> None:
    """Raise as `open_file` does, before a library opens the file by its path."""
    open_file(path, max_bytes).close()


def read_file(path: str | os.PathLike[str], max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Content of a regular file; an `OSError` where it is something else, or has more bytes."""
    with open_file(path, max_bytes) as file:
        return file.read(size_of(file))  # no more: files of /proc have a size of 0 and no end


def size_of(file: BinaryIO) -> int:
    """Bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def decode_text(content: bytes) -> str:
    """Text in UTF-8, with a byte order mark or without; a ValueError says what it is instead."""
    for name, marks in WIDE_TEXT.items():
        if content.startswith(marks):
            raise ValueError(f"it is {name}, to be saved as UTF-8")
    if b"\0" in content:
        raise ValueError("it is binary, or UTF-16, to be saved as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8") from error


def parse_json(content: bytes | str, *, allow_nan: bool = False) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """Parse JSON; a ValueError where it is none, or has a number that is not finite unallowed."""
    number, integer = (None, None) if allow_nan else (_finite, _integer)
    try:
        return json.loads(content, parse_constant=number, parse_float=number, parse_int=integer)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def _open(path: str | os.PathLike[str], flags: int, max_bytes: int | None = None) -> int:
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o666)
    try:
        _check(os.fstat(descriptor), path, max_bytes)  # something else may have taken its place
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check(status: os.stat_result, path: str | os.PathLike[str], max_bytes: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    if max_bytes is not None and status.st_size > max_bytes:
        reason = f"it has {status.st_size:,} bytes, more than {max_bytes:,}"
        raise OSError(errno.EFBIG, reason, os.fspath(path))


def _integer(text: str) -> int:
    _finite(text)  # larger ones cannot be shown, or compared, as figures
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # also 1e999
        raise ValueError(f"{shorten(text, MAX_NAME)} is not a figure")
    return number
