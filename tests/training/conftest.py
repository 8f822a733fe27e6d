from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.stage_configs import through_prior
from tests.training.tiny_codes import write_inputs


@pytest.fixture(scope="package")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs, tokenizer, codes and prior; not to be written to."""
    return through_prior(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="package")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with code caches and a tokenizer for them; not to be written to."""
    return write_inputs(tmp_path_factory.mktemp("walks"))
