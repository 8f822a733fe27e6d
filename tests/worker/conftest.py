from __future__ import annotations

from pathlib import Path

import pytest

from masc_core.bundle.read import Bundle, load_bundle
from tests.tiny_bundle import save_tiny_bundle


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with version 1 of the tiny model."""
    root = tmp_path_factory.mktemp("models")
    save_tiny_bundle(root)
    return root


@pytest.fixture
def bundle(models: Path) -> Bundle:
    """That version, loaded for one test, which may change it."""
    return load_bundle(models / "tiny" / "1")
