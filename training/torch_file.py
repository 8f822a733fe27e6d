"""Files of ``torch.save``, of which nothing is run.

They are unpickled by torch's restricted reader alone, which builds tensors and plain values; of
other classes it is told `argparse.Namespace`. Tensors stay on the disk until they are used.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from masc_core.errors import ArtifactError
from masc_core.io.bounded import check_file
from masc_core.io.files import reading

# All that torch's restricted reader raises on what is damaged or hostile.
DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)


def read_torch_file(path: Path) -> Any:  # noqa: ANN401 - whatever was saved
    """Read a file of any version of torch.

    Raises
    ------
    ArtifactError : the file is missing, damaged or no such file, or asks for code to be run
    """
    try:
        with reading(path), warnings.catch_warnings():
            # Only the archives that torch.save writes since 2020 can stay on the disk.
            check_file(path)
            on_disk = zipfile.is_zipfile(path)
            if on_disk:
                _refuse_packed(path)
            warnings.simplefilter("ignore")  # of pickles newer than torch's own: read or refused
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(path, map_location="cpu", mmap=on_disk, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArtifactError(path, _refusal(str(error))) from error
    except DAMAGE as error:
        raise ArtifactError(path, "is not a file of torch.save, or is damaged") from error


def _refuse_packed(path: Path) -> None:
    """Raise a ValueError where a member takes more memory than it has bytes; torch packs none."""
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("it is packed")


def _refusal(message: str) -> str:
    """What an object that is not built would have been, out of torch's long explanation."""
    named = re.search(r"GLOBAL ([\w.]+)|class ([\w.]+)", message)
    if named is None:
        return "is not a file of torch.save, or is damaged"
    return (
        f"asks for {named[1] or named[2]}, which is neither a tensor nor a plain value: nothing of "
        "it is loaded, for that could run any program"
    )
