"""Build the prior: a tree over a codebook, cut into K clusters.

::

    masc prior build training/configs/cifar10/prior.toml
    masc prior build --tokenizer models/cifar10/1 --num-clusters 512 --out runs/prior-512
    masc prior build --tokenizer codebook.npy --num-clusters 8192 --method kmeans++ --out runs/km

Writes ``prior.npz`` and, where the method makes one, ``tree.npz``: the whole tree, so that another
K is a cut away.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from masc_core.clustering.methods import METHODS, cluster_codes
from masc_core.device import resolve_device
from masc_core.errors import ArtifactError, ConfigError
from masc_core.prior import ClusterMap
from masc_core.tree import Linkage, SemanticTree, build_tree
from training.codebook_source import read_rows
from training.config import StageConfig
from training.loop import Report, no_report

TREE_FILE = "tree.npz"
PRIOR_FILE = "prior.npz"


class PriorConfig(StageConfig):
    """Keys of a prior."""

    tokenizer: Path = Field(
        description="tokenizer.safetensors, the folder of a bundle, or a codebook (V, E) as .npy"
    )
    num_clusters: int = Field(ge=1, description="K")
    method: str = Field("average", description=f"one of {', '.join(METHODS)}")
    raw_rows: bool = Field(
        default=False, description="cluster the rows as stored, not the normalised ones codes mean"
    )
    seed: int = Field(0, ge=0, lt=1 << 32, description="seed of what is random in the method")

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(f"no method {method!r}; there are {', '.join(METHODS)}")
        return method


def build_prior(config: PriorConfig, report: Report = no_report) -> ClusterMap:
    """Run the stage.

    Raises
    ------
    ConfigError
        More clusters than codes, a number of them that the method cannot make, or a folder that
        cannot be written.
    ArtifactError
        The tokenizer or codebook is missing, damaged, or holds what cannot be clustered.
    """
    rows = read_rows(config.tokenizer, raw=config.raw_rows)
    if rows.ndim == 2 and config.num_clusters > len(rows):
        raise ConfigError(f"num_clusters: {config.num_clusters} of {len(rows)} codes is impossible")
    _make_folder(config.out)
    tree = _tree(rows, config, report) if config.method in get_args(Linkage) else None
    prior = _partition(rows, config) if tree is None else tree.cut(config.num_clusters)
    if tree is None:
        (config.out / TREE_FILE).unlink(missing_ok=True)  # of another method
    else:
        tree.save(config.out / TREE_FILE)
    prior.save(config.out / PRIOR_FILE)
    sizes = prior.sizes
    report(1, 1, f"largest cluster {sizes.max()}, {np.mean(sizes == 1):.0%} single codes")
    return prior


def _tree(rows: npt.NDArray[Any], config: PriorConfig, report: Report) -> SemanticTree:
    device = str(resolve_device(config.device)) if config.method == "average" else "cpu"
    try:
        return build_tree(rows, config.method, device, report)  # type: ignore[arg-type] # checked
    except ValueError as error:
        raise ArtifactError(config.tokenizer, str(error)) from error


def _partition(rows: npt.NDArray[Any], config: PriorConfig) -> ClusterMap:
    try:
        return cluster_codes(rows, config.num_clusters, config.method, seed=config.seed)
    except ValueError as error:
        raise ConfigError(f"{config.method}: {error}") from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror})") from error
