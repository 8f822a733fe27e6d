"""What an overview of versions says of one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC

from pydantic import JsonValue

from masc_core.bundle.registry import Registry
from masc_core.errors import ArtifactError

# Figures by which people choose between versions: key among the metrics, name, format.
FIGURES = (
    ("bits_per_position", "bits", ".3f"),
    ("psnr", "PSNR", ".2f"),
    ("frechet_inception_distance", "FID", ".2f"),
    ("class_agreement", "agreement", ".1%"),
    ("seconds_per_image", "s/image", ".3g"),
)


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version in words.

    Attributes
    ----------
    state : ``*`` for the active version, ``previous`` for the one that a rollback leads to
    created : day, UTC
    megabytes : of all its files
    sizes : positions, clusters / codes
    figures : the metrics that matter; what is wrong, where the version is damaged
    """

    name: str
    version: str
    state: str
    created: str = ""
    megabytes: str = ""
    sizes: str = ""
    figures: str = ""


def version_rows(registry: Registry) -> list[VersionRow]:
    """Every version of every model; one that is damaged does not hide the others.

    Raises
    ------
    ArtifactError : the registry's folder cannot be read
    """
    rows = []
    for name in registry.names():
        states = _states(registry, name)
        rows += [
            _row(registry, name, version, states.get(version, ""))
            for version in registry.versions(name)
        ]
    return rows


def _states(registry: Registry, name: str) -> dict[str, str]:
    try:
        return {str(registry.previous(name)): "previous", registry.current(name): "*"}
    except ArtifactError:
        return {}


def _row(registry: Registry, name: str, version: str, state: str) -> VersionRow:
    try:
        manifest = registry.manifest(name, version)
        folder = registry.path(name, version)
        size = sum((folder / file).stat().st_size for file in manifest.files)
    except ArtifactError as error:
        return VersionRow(name, version, state, figures=f"damaged: {error.reason}")
    except OSError as error:
        return VersionRow(name, version, state, figures=f"damaged: {error.strerror}")
    return VersionRow(
        name,
        version,
        state,
        created=f"{manifest.created.astimezone(UTC):%Y-%m-%d}",
        megabytes=f"{size / 1e6:.1f}",
        sizes=f"{manifest.grid}x{manifest.grid}, {manifest.num_clusters}/{manifest.num_codes}",
        figures=_figures(manifest.metrics),
    )


def _figures(metrics: Mapping[str, JsonValue]) -> str:
    found = []
    for key, name, form in FIGURES:
        value = metrics.get(key)
        if isinstance(value, int | float):
            found.append(f"{name} {value:{form}}")
    return ", ".join(found)
