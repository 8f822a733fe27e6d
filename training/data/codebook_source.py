"""Where a codebook comes from: a tokenizer's file, a published bundle, or an array.

Legend: V codes, E code dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from masc_core.bundle.manifest import TOKENIZER_FILE
from masc_core.bundle.read import load_bundle
from masc_core.codebook import checked_rows
from masc_core.errors import ArtifactError
from masc_core.io.bounded import open_file, size_of
from masc_core.io.files import sha256_file
from masc_core.io.npz import DAMAGE, Array, read_npy
from masc_core.models.vq import VQModel
from masc_core.models.weights import load_tokenizer

ARRAY_SUFFIX = ".npy"


@dataclass(frozen=True, slots=True)
class TrainedTokenizer:
    """A tokenizer that was trained.

    Attributes
    ----------
    name : of the bundle and its version, or the path of the file
    model : in evaluation mode on the CPU; of a bundle it may lack its encoder
    sha256 : of the file of its weights
    """

    name: str
    model: VQModel
    sha256: str

    @classmethod
    def open(cls, path: Path) -> TrainedTokenizer:
        """Read a tokenizer's file, or the tokenizer of a bundle's folder."""
        if not path.is_dir():
            return cls(str(path), load_tokenizer(path), sha256_file(path))
        bundle = load_bundle(path)
        name = f"{bundle.manifest.name} {bundle.manifest.version}"
        return cls(name, bundle.tokenizer, bundle.manifest.files[TOKENIZER_FILE])

    @property
    def has_encoder(self) -> bool:
        """Whether it can make codes of images."""
        return hasattr(self.model, "encoder")

    def rows(self, *, raw: bool) -> npt.NDArray[np.float64]:
        """Rows to cluster (V, E): what codes mean to the decoder or, ``raw``, what is stored."""
        quantizer = self.model.quantize
        rows = quantizer.embedding.weight if raw else quantizer.codebook()
        return rows.detach().cpu().double().numpy()


def read_rows(path: Path, *, raw: bool) -> npt.NDArray[np.float64]:
    """Rows of a codebook (V, E), fit to cluster.

    Parameters
    ----------
    path : a tokenizer's file, a bundle's folder, or an ``.npy`` file, whose rows are taken as they
        are
    raw : the rows as a tokenizer stores them, not normalised

    Raises
    ------
    ArtifactError
        The file is missing or damaged, or holds what cannot be clustered.
    """
    array = path.suffix == ARRAY_SUFFIX
    rows = _read_array(path) if array else TrainedTokenizer.open(path).rows(raw=raw)
    try:
        return checked_rows(rows)
    except ValueError as error:
        raise ArtifactError(path, str(error)) from error


def _read_array(path: Path) -> Array:
    try:
        with open_file(path) as file:  # np.load would also open archives and pickles
            return read_npy(file, size_of(file), size_of(file))
    except OSError as error:
        raise ArtifactError(path, f"cannot be read: {error.strerror or error}") from error
    except DAMAGE as error:
        raise ArtifactError(path, "is not an .npy array of numbers, or is damaged") from error
