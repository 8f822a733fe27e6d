"""Build the prior: a tree over a codebook, cut into K clusters.

::

    masc prior build training/configs/cifar10/prior.toml
    masc prior build --tokenizer models/cifar10/1 --num-clusters 512 --out runs/prior-512
    masc prior build --tokenizer codebook.npy --num-clusters 8192 --method kmeans++ --out runs/km
    masc prior import mapping-kmeans+nearest-cluster_size=128.pt --out runs/prior-iar

Writes ``prior.npz`` and, where the method makes one, ``tree.npz``: the whole tree, so that another
K is a cut away.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from masc_core.bundle.manifest import PRIOR_FILE
from masc_core.clustering.methods import cluster_codes
from masc_core.device import resolve_device
from masc_core.errors import ConfigError
from masc_core.prior import ClusterMap
from masc_core.progress import ProgressCallback, no_progress
from masc_core.semantic_tree import LeafOrder
from masc_core.tree import LINKAGES, Linkage, SemanticTree, build_tree
from training.config import set_threads
from training.data.codebook_source import read_rows
from training.downloads import local_file
from training.loop.run_dir import lock_folder
from training.pretrained.iar import clusters_of, read_mapping
from training.stages.configs import ImportPriorConfig, PriorConfig

RUN_TREE_FILE = "tree.npz"


def build_prior(config: PriorConfig, report: ProgressCallback = no_progress) -> ClusterMap:
    """Run the stage.

    Raises
    ------
    ConfigError : no such device, more clusters than codes, a number of them that the method cannot
        make, too little memory for the method, or a folder that is in use or cannot be written
    ArtifactError : the tokenizer or codebook is missing, damaged, or holds what cannot be
        clustered; or a file cannot be written
    """
    set_threads(config.threads)
    device = resolve_device(config.device)
    rows = read_rows(config.tokenizer, raw=config.raw_rows)
    if config.num_clusters > len(rows):
        raise ConfigError(f"num_clusters: {config.num_clusters} of {len(rows)} codes is impossible")
    with lock_folder(config.out):
        report(0, 1, config.method)
        try:
            tree, prior = _cluster(rows, config, str(device), report)
        except MemoryError as error:
            raise ConfigError(
                f"method: {config.method} of {len(rows)} codes does not fit into the memory"
            ) from error
        _write(config.out, tree, prior)
    sizes = prior.sizes
    report(1, 1, f"largest cluster {sizes.max()}, {np.mean(sizes == 1):.0%} single codes")
    return prior


def _cluster(
    rows: npt.NDArray[np.float64], config: PriorConfig, device: str, report: ProgressCallback
) -> tuple[SemanticTree | None, ClusterMap]:
    linkage = "average" if config.method == "leaf-order" else config.method
    try:
        if linkage in LINKAGES:
            on = device if linkage == "average" else "cpu"
            tree = build_tree(rows, cast("Linkage", linkage), on, report)
            if config.method == "leaf-order":
                return tree, LeafOrder.of(tree).chunks(config.num_clusters)
            return tree, tree.cut(config.num_clusters)
        return None, cluster_codes(rows, config.num_clusters, config.method, seed=config.seed)
    except ValueError as error:  # the rows are good, so it is K
        raise ConfigError(f"num_clusters: {error}") from error


def import_prior(config: ImportPriorConfig) -> ClusterMap:
    """Write the clusters of IAR's mapping as a prior; errors as of `build_prior`."""
    prior = clusters_of(read_mapping(local_file(config.source)), config.cluster_size)
    with lock_folder(config.out):
        _write(config.out, None, prior)
    return prior


def _write(folder: Path, tree: SemanticTree | None, prior: ClusterMap) -> None:
    """The prior after its tree; the tree of another method goes when a prior has taken over."""
    if tree is not None:
        tree.save(folder / RUN_TREE_FILE)
    prior.save(folder / PRIOR_FILE)
    if tree is None:
        (folder / RUN_TREE_FILE).unlink(missing_ok=True)
