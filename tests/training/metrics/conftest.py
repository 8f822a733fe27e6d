from __future__ import annotations

import pytest

from masc_core.bundle.read import Bundle, load_bundle
from tests.tiny_bundle import save_tiny_bundle


@pytest.fixture(scope="package")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of untrained models."""
    root = tmp_path_factory.mktemp("models")
    save_tiny_bundle(root)
    return load_bundle(root / "tiny" / "1")
