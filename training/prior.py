"""Build the prior: average linkage over a tokenizer's codebook, cut into K clusters.

::

    masc prior build training/configs/cifar10/prior.toml

Writes ``tree.npz`` (the whole tree: another K is a cut away) and ``prior.npz``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

from masc_core.errors import ConfigError
from masc_core.prior import ClusterMap
from masc_core.tree import build_tree
from masc_core.weights import load_tokenizer
from training.config import StageConfig
from training.loop import Report, no_report


class PriorConfig(StageConfig):
    """Keys of a prior."""

    tokenizer: Path = Field(description="tokenizer.safetensors")
    num_clusters: int = Field(ge=1, description="K")
    raw_rows: bool = Field(
        default=False, description="cluster the rows as stored, not the normalised ones codes mean"
    )


def build_prior(config: PriorConfig, report: Report = no_report) -> ClusterMap:
    """Run the stage.

    Raises
    ------
    ConfigError
        More clusters than codes.
    """
    model = load_tokenizer(config.tokenizer)
    if config.num_clusters > model.config.num_codes:
        raise ConfigError(
            f"num_clusters: {config.num_clusters} of {model.config.num_codes} codes is impossible"
        )
    rows = model.quantize.embedding.weight if config.raw_rows else model.quantize.codebook()
    tree = build_tree(rows.detach().numpy().astype(np.float64))
    report(1, 2, "tree")
    prior = tree.cut(config.num_clusters)
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{config.out}: cannot be written ({error.strerror})") from error
    tree.save(config.out / "tree.npz")
    prior.save(config.out / "prior.npz")
    sizes = prior.sizes
    report(2, 2, f"largest cluster {sizes.max()}, {np.mean(sizes == 1):.0%} single codes")
    return prior
