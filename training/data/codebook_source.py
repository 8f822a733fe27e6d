"""Where a codebook comes from: a tokenizer's file, a published bundle, or an array.

Legend: V codes, E code dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from masc_core.bundle.manifest import MANIFEST_FILE, TOKENIZER_FILE
from masc_core.bundle.read import load_bundle
from masc_core.codebook import checked_rows
from masc_core.errors import ArtifactError
from masc_core.io.bounded import open_file, size_of
from masc_core.io.files import reading, sha256_file
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
    sha256 : of the file of its weights; of a bundle with an encoder, one of both files
    """

    name: str
    model: VQModel
    sha256: str

    @classmethod
    def open(cls, path: Path, *, with_encoder: bool = False) -> TrainedTokenizer:
        """Read the tokenizer of a bundle's folder, of a run's folder, or of a file.

        An `ArtifactError` where it cannot be read, or lacks an encoder that is needed.
        """
        if (path / MANIFEST_FILE).is_file():
            bundle = load_bundle(path)
            if with_encoder and not hasattr(bundle.tokenizer, "encoder"):
                raise ArtifactError(
                    path,
                    "has no encoder: it was published without it; masc tokenizer train --decoder "
                    "makes one",
                )
            name = f"{bundle.manifest.name} {bundle.manifest.version}"
            return cls(name, bundle.tokenizer, bundle.manifest.tokenizer_sha256)
        file = path / TOKENIZER_FILE if path.is_dir() else path
        return cls(str(file), load_tokenizer(file), sha256_file(file))

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
        with reading(path), open_file(path) as file:  # np.load would also open archives and pickles
            return read_npy(file, size_of(file), size_of(file))
    except DAMAGE as error:
        raise ArtifactError(path, "is not an .npy array of numbers, or is damaged") from error
