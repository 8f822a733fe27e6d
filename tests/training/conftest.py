from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.stages import through_prior


@pytest.fixture(scope="package")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs, tokenizer, codes and prior; not to be written to."""
    return through_prior(tmp_path_factory.mktemp("prepared"))
