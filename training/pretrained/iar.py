"""IAR's numbering of codes, in which the codes of a cluster stand side by side.

IAR moves the rows of LlamaGen's codebook, and trains the transformer over the new numbers. A
``mapping``, int64 (V,), has the new number of each old one, and ``mapping // m`` its cluster, where
m is the size of all clusters.

Hu et al.: Improving Autoregressive Visual Generation with Cluster-Oriented Token Prediction. 2025.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from masc_core.errors import ArtifactError, ConfigError
from masc_core.io.bounded import MAX_CODES
from masc_core.models.gpt import GPT
from masc_core.prior import ClusterMap
from training.pretrained.checkpoint_file import CheckpointFile, is_whole
from training.torch_file import read_torch_file

INTEGERS = (torch.int64, torch.int32, torch.int16)
CLUSTER_SIZE = 128  # of the release
CLUSTER_SIZE_ARGUMENT = "cluster_size"  # of the training; LlamaGen's has none


def read_mapping(path: Path) -> Tensor:
    """New numbers, int64 (V,), of a file; an ArtifactError where that holds none."""
    content = read_torch_file(path)
    if not isinstance(content, Tensor) or not is_whole(content):
        raise ArtifactError(path, "is no mapping of IAR: it holds no tensor alone")
    if content.dim() != 1 or content.dtype not in INTEGERS:
        raise ArtifactError(
            path, f"is no mapping of IAR: it holds {content.dtype} {tuple(content.shape)}"
        )
    if not 1 < len(content) <= MAX_CODES:
        raise ArtifactError(path, f"is no mapping of IAR: it has {len(content):,} numbers")
    mapping = content.long()
    if not torch.equal(mapping.sort().values, torch.arange(len(mapping))):
        raise ArtifactError(path, "is no permutation of the codes")
    return mapping


def clusters_of(mapping: Tensor, cluster_size: int) -> ClusterMap:
    """Clusters of the old numbers; a ConfigError where they are not of that size."""
    if len(mapping) % cluster_size:
        raise ConfigError(
            f"cluster_size: {len(mapping)} codes are no clusters of {cluster_size} each"
        )
    return ClusterMap.from_labels(mapping.numpy() // cluster_size)


def read_cluster_size(checkpoint: CheckpointFile, given: int | None) -> int:
    """Codes of a cluster, as the training's arguments have it, or as it is given.

    Raises
    ------
    ConfigError : these differ, or there are arguments of a training that was not IAR's
    """
    if not checkpoint.arguments:
        return given or CLUSTER_SIZE
    stored = checkpoint.arguments.get(CLUSTER_SIZE_ARGUMENT)
    if not isinstance(stored, int) or not 1 <= stored <= MAX_CODES:
        raise ConfigError(
            f"mapping: {checkpoint.path} has LlamaGen's numbers of codes, for its training had no "
            f"{CLUSTER_SIZE_ARGUMENT}; leave the mapping out"
        )
    if given not in {None, stored}:
        raise ConfigError(f"cluster_size: {checkpoint.path} was trained with {stored}, not {given}")
    return stored


@torch.no_grad()
def renumber(model: GPT, mapping: Tensor) -> None:
    """Give a transformer over the new numbers the old ones, in place."""
    for rows in (model.tok_embeddings, model.output):
        rows.weight = torch.nn.Parameter(rows.weight[mapping], requires_grad=False)
