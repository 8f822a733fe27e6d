"""Codes seen through a prior: what the transformer learns from.

Codes become clusters when a batch is made, so one cache serves every prior.

Legend: B images, L positions, V codes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from masc_core.arrays import IntArray
from masc_core.errors import ConfigError
from masc_core.io.files import sha256_file
from masc_core.prior import ClusterMap
from training.changes import require_same_classes
from training.data.code_cache import CodeCache
from training.loop.distributed import Ranks
from training.loop.task import Indices, ItemRandomBits
from training.metrics.cluster_bits import uniform_bits

PARTITION = "partition-"  # and the number of clusters: its name among the inputs
# Of the caches of training and validation, besides their classes.
MATCHING_KEYS = ("tokenizer_sha256", "num_codes", "num_positions", "exif_orientation", "background")


class ClusterData:
    """Code caches of training and validation, and the prior.

    Parameters
    ----------
    codes, val_codes, prior : folders of the caches, and a file; the flat vocabulary without it
    partitions : files of priors, of whose clusters the loss or a measurement knows, too
    ranks : collective, call on every rank; the main one checks the caches' checksums for all

    Attributes
    ----------
    inputs : hashes of images, tokenizer, prior and partitions, to which the trained weights hold
    partitions : of the codes, each with another number of clusters, made of whole clusters of the
        prior

    Raises
    ------
    ConfigError : the caches and the prior do not belong together
    ArtifactError : a cache is missing, unfinished or damaged
    """

    def __init__(
        self,
        codes: Path,
        val_codes: Path,
        prior: Path | None,
        ranks: Ranks | None = None,
        partitions: Sequence[Path] = (),
    ) -> None:
        ranks = ranks or Ranks(torch.device("cpu"))
        with ranks.raise_on_all_ranks("reading the code caches"):
            self.train = CodeCache.open(codes, verify=ranks.is_main)
            self.val = CodeCache.open(val_codes, verify=ranks.is_main)
        index = self.train.index
        names = self.val.index.class_names
        require_same_classes("val_codes", val_codes, names, codes, index.class_names)
        for key in MATCHING_KEYS:
            found, wanted = getattr(self.val.index, key), getattr(index, key)
            if found != wanted:
                raise ConfigError(
                    f"val_codes: has another {key} than codes: {found} in {val_codes}, "
                    f"{wanted} in {codes}"
                )
        self.prior = ClusterMap.load(prior) if prior else ClusterMap.identity(index.num_codes)
        self.inputs = {
            "codes": index.files_sha256,
            "val_codes": self.val.index.files_sha256,
            "tokenizer": index.tokenizer_sha256,
            "prior": sha256_file(prior) if prior else "identity",
        }
        if self.prior.num_codes != index.num_codes:
            raise ConfigError(
                f"prior: is over {self.prior.num_codes} codes, the caches hold {index.num_codes}"
            )
        self.partitions = tuple(ClusterMap.load(path) for path in partitions)
        for path, partition in zip(partitions, self.partitions, strict=True):
            try:
                partition.over(self.prior)
            except ValueError as error:
                raise ConfigError(f"partitions: {path} {error}") from error
            name = f"{PARTITION}{partition.num_clusters}"
            if name in self.inputs:
                raise ConfigError(f"partitions: two have {partition.num_clusters} clusters")
            self.inputs[name] = partition_sha256(partition)

    @property
    def summary(self) -> dict[str, Any]:
        """What a run stores of its data, so that continuing with other data is refused by name."""
        caches = {"codes": self.train.index, "val_codes": self.val.index}
        sizes = {f"{key}_images": index.num_images for key, index in caches.items()}
        return {**self.inputs, **sizes, "classes": list(self.train.index.class_names)}

    @property
    def num_classes(self) -> int:
        """Classes of the images."""
        return len(self.train.index.class_names)

    @property
    def num_positions(self) -> int:
        """L."""
        return self.train.index.num_positions

    def batch(self, indices: Indices, random_bits: ItemRandomBits) -> tuple[Tensor, Tensor]:
        """Labels (B,) and clusters (B, L) of training images, a random variant of each."""
        labels, codes = self.code_batch(indices, random_bits)
        return labels, self.prior.encode(codes)

    def code_batch(self, indices: Indices, random_bits: ItemRandomBits) -> tuple[Tensor, Tensor]:
        """The same with codes int64 (B, L)."""
        variants = (random_bits[:, 0] % self.train.index.num_variants).astype(np.int64)
        codes = self.train.take(indices, variants)
        return torch.from_numpy(self.train.labels[indices]), torch.from_numpy(codes)

    def val_batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Labels and clusters of validation images, the first variant of each."""
        labels, codes = self.val_code_batch(start, stop)
        return labels, self.prior.encode(codes)

    def val_code_batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The same with codes int64 (B, L)."""
        images = np.arange(start, min(stop, len(self.val)))
        codes = self.val.take(images, np.zeros_like(images))
        return torch.from_numpy(self.val.labels[images]), torch.from_numpy(codes)

    def val_code_batches(self, size: int, ranks: Ranks) -> Iterator[tuple[Tensor, Tensor]]:
        """Validation batches that fall to a rank, on its device."""
        for start in range(size * ranks.rank, len(self.val), size * ranks.world_size):
            labels, codes = self.val_code_batch(start, start + size)
            yield labels.to(ranks.device), codes.to(ranks.device)

    @cached_property
    def train_counts(self) -> IntArray:
        """How often each code occurs in the training images, over all variants, int64 (V,)."""
        return self.train.counts()

    @cached_property
    def val_counts(self) -> IntArray:
        """How often each code occurs in the validation images' first variants, int64 (V,)."""
        return self.val.counts(slice(1))

    def uniform_bits(self) -> float:
        """Bits to tell a validation code from the others of its cluster, all of them alike.

        What a code costs in all is these bits and the cluster's: vocabularies compare by that.
        """
        return uniform_bits(self.prior, self.val_counts)

    def unigram_bits(self) -> float:
        """Entropy of the clusters' frequencies in the training codes, in bits a position."""
        counts = np.bincount(
            self.prior.labels, weights=self.train_counts, minlength=self.prior.num_clusters
        )
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * np.log2(shares)).sum())


def partition_sha256(partition: ClusterMap) -> str:
    """Hash of a partition, whatever file it comes from."""
    return hashlib.sha256(partition.labels.tobytes()).hexdigest()
