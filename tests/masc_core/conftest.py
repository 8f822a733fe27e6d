from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def threads() -> Iterator[None]:
    """Let a test choose how many threads torch has; afterwards it has as many as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
