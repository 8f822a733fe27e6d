"""Where a prior to look at comes from: a run, a bundle, or a file."""

from __future__ import annotations

from pathlib import Path

from masc_core.bundle.manifest import MANIFEST_FILE, PRIOR_FILE, read_manifest
from masc_core.errors import ConfigError
from masc_core.prior import ClusterMap
from training.pretrained.iar import CLUSTER_SIZE, clusters_of, read_mapping


def prior_file(path: Path) -> Path:
    """The file that a path means; of a bundle what the page shows, see `Manifest.shown_prior`."""
    if not path.is_dir():
        return path
    if (path / MANIFEST_FILE).is_file():
        return path / read_manifest(path).shown_prior
    return path / PRIOR_FILE


def read_prior(file: Path) -> ClusterMap:
    """Clusters of a prior's file, or of IAR's mapping (``.pt``), of its release's 128 codes each.

    Raises
    ------
    ArtifactError : the file is missing, damaged, or neither
    ConfigError : a mapping's codes are no clusters of IAR's size
    """
    if file.suffix == ".pt":
        mapping = read_mapping(file)
        if len(mapping) % CLUSTER_SIZE:
            raise ConfigError(
                f"{file}: {len(mapping)} codes are no clusters of IAR's {CLUSTER_SIZE}; make a "
                "prior of it with masc prior import --cluster-size"
            )
        return clusters_of(mapping, CLUSTER_SIZE)
    return ClusterMap.load(file)
