from __future__ import annotations

import pytest

from tests.docker.manifests import OVERLAYS, Manifest, compose, overlay

OWN = {
    "elsewhere": ("redis-url", "models-url", "monitoring", "scale-server", "scale-worker"),
    "keda": ("nvidia", "redis", "monitoring", "keda"),
}


@pytest.fixture(scope="package")
def combinations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Manifest]]:
    """The overlays, and others that bring in every component."""
    folder = tmp_path_factory.mktemp("kustomize")
    made = {name: compose(folder / name, *components) for name, components in OWN.items()}
    return made | {name: overlay(name) for name in OVERLAYS}
