"""The prior: which cluster each code of a tokenizer belongs to.

Clusters are numbered in ascending order of the lowest code that they hold, so a partition has
exactly one ``labels`` array, and priors written here and by other programs are the same file.

Legend: V codes, K clusters.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, TypeGuard, overload

import numpy as np
import numpy.typing as npt

from masc_core.arrays import IntArray
from masc_core.errors import ArtifactError
from masc_core.io.bounded import MAX_CODES
from masc_core.io.npz import Array, load_npz, read_npz, save_npz

if TYPE_CHECKING:  # a front end reads priors without torch
    from torch import Tensor


_ARRAYS = ("mapping", "k", "n")


@dataclass(frozen=True, slots=True, eq=False)
class ClusterMap:
    """A partition of V codes into K clusters. All arrays are read-only.

    Parameters
    ----------
    labels : int (V,), cluster of each code; see `from_labels` for labels in any numbering

    Attributes
    ----------
    labels : int64 (V,), in 0..K-1, numbered by the lowest code that a cluster holds
    members : int64 (V,), the codes grouped by cluster, ascending within each
    offsets : int64 (K+1,), cluster ``k`` is ``members[offsets[k]:offsets[k + 1]]``

    Raises
    ------
    ValueError : labels that are no such numbering; names the code at fault
    """

    labels: IntArray
    members: IntArray = field(init=False, repr=False)
    offsets: IntArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        labels = np.array(_checked_labels(np.asarray(self.labels)), dtype=np.int64)
        sizes = np.bincount(labels)
        arrays = {
            "labels": labels,
            "members": np.argsort(labels, kind="stable").astype(np.int64, copy=False),
            "offsets": np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        }
        for name, array in arrays.items():
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @classmethod
    def from_labels(cls, labels: npt.ArrayLike) -> ClusterMap:
        """Partition from cluster ids of any kind, (V,): equal id, same cluster."""
        ids = np.asarray(labels)
        if ids.ndim != 1 or not len(ids):
            raise ValueError(f"labels must be one non-empty row, got shape {ids.shape}")
        _, lowest, inverse = np.unique(ids, return_index=True, return_inverse=True)
        number = np.empty(len(lowest), dtype=np.int64)
        number[np.argsort(lowest)] = np.arange(len(lowest))
        return cls(number[inverse])

    @classmethod
    def identity(cls, num_codes: int) -> ClusterMap:
        """Every code its own cluster: the flat vocabulary, K = V."""
        if num_codes < 1:
            raise ValueError(f"a prior needs at least one code, got {num_codes}")
        return cls(np.arange(num_codes))

    @property
    def num_codes(self) -> int:
        """V."""
        return len(self.labels)

    @property
    def num_clusters(self) -> int:
        """K."""
        return len(self.offsets) - 1

    @property
    def sizes(self) -> IntArray:
        """Codes in each cluster, int64 (K,); none is zero."""
        return np.diff(self.offsets)

    @overload
    def encode(self, codes: Tensor) -> Tensor: ...

    @overload
    def encode(self, codes: npt.ArrayLike) -> IntArray: ...

    def encode(self, codes: npt.ArrayLike | Tensor) -> IntArray | Tensor:
        """Clusters of codes: integers of any shape in, int64 of that shape out.

        A tensor gives a tensor on its device, at the price of one synchronisation for the check.

        Raises
        ------
        ValueError : a code outside 0..V-1, or numbers that are not integers
        """
        if _is_tensor(codes):
            if codes.is_floating_point() or codes.is_complex():
                raise ValueError(f"codes must be integers, got {codes.dtype}")
            codes = codes.long()
            if codes.numel():
                self._check_range(int(codes.min()), int(codes.max()))
            return codes.new_tensor(self.labels)[codes]
        array = np.asarray(codes)
        if array.size == 0:
            return np.empty(array.shape, dtype=np.int64)
        if array.dtype.kind not in "iu":
            raise ValueError(f"codes must be integers, got {array.dtype}")
        self._check_range(int(array.min()), int(array.max()))
        return np.asarray(self.labels[array], dtype=np.int64)  # 0-d stays an array

    def over(self, finer: ClusterMap) -> ClusterMap:
        """The same partition, of the clusters of a finer one instead of its codes.

        Raises
        ------
        ValueError : it is over another number of codes, or divides a cluster; names a code of that
        """
        if finer.num_codes != self.num_codes:
            raise ValueError(f"is over {self.num_codes} codes, not {finer.num_codes}")
        owners = self.labels[finer.members[finer.offsets[:-1]]]
        divided = np.flatnonzero(owners[finer.labels] != self.labels)
        if len(divided):
            raise ValueError(f"divides the cluster of code {divided[0]}")
        return ClusterMap(owners)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the public mapping format: ``.npz`` of ``mapping`` int64 (V,), ``k`` and ``n``."""
        save_npz(path, mapping=self.labels, k=self.num_clusters, n=self.num_codes)

    @classmethod
    def load(cls, path: str | PathLike[str], max_codes: int = MAX_CODES) -> ClusterMap:
        """Read the public mapping format, of at most so many codes.

        Raises
        ------
        ArtifactError : the file is missing, damaged, too large, contradicts itself, or numbers its
            clusters otherwise: a model's weights hold to the numbering that they were trained with,
            so renumbering here would silently pair them with the wrong clusters
        """
        return cls._checked(load_npz(path, _ARRAYS, max_bytes=8 * max_codes), path)

    @classmethod
    def parse(cls, content: bytes, path: str | PathLike[str], max_codes: int) -> ClusterMap:
        """Read the content of a file as `load` does; ``path`` is what errors call it."""
        arrays = read_npz(io.BytesIO(content), path, _ARRAYS, max_bytes=8 * max_codes)
        return cls._checked(arrays, path)

    @classmethod
    def _checked(cls, arrays: Mapping[str, Array], path: str | PathLike[str]) -> ClusterMap:
        try:
            prior = cls(arrays["mapping"])
            _check_count("n", arrays["n"], prior.num_codes, "codes")
            _check_count("k", arrays["k"], prior.num_clusters, "clusters")
        except ValueError as error:
            raise ArtifactError(path, f"is not a usable prior: {error}") from error
        return prior

    def _check_range(self, lowest: int, highest: int) -> None:
        if lowest < 0 or highest >= self.num_codes:
            code = lowest if lowest < 0 else highest
            raise ValueError(f"code {code} is outside 0..{self.num_codes - 1}")


def _is_tensor(codes: object) -> TypeGuard[Tensor]:
    return hasattr(codes, "new_tensor")


def _checked_labels(labels: Array) -> Array:
    if labels.ndim != 1 or not len(labels):
        raise ValueError(f"labels must be one non-empty row, got shape {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    # Numbered by lowest code: no label exceeds the largest before it by more than one. With the
    # first label 0 that also makes every number below the largest occur.
    before = np.concatenate([[-1], np.maximum.accumulate(labels)[:-1].astype(np.int64)])
    wrong = np.flatnonzero((labels < 0) | (labels > before + 1))
    if len(wrong):
        code = int(wrong[0])
        raise ValueError(
            f"code {code} has cluster {labels[code]}, but clusters must be numbered 0, 1, 2, ... "
            "in the order of the lowest code that they hold"
        )
    return labels


def _check_count(name: str, stored: Array, actual: int, noun: str) -> None:
    if stored.shape != () or stored.dtype.kind not in "iu":
        raise ValueError(f"{name!r} is not an integer")
    if int(stored) != actual:
        raise ValueError(f"{name!r} is {int(stored)}, but the mapping has {actual} {noun}")
