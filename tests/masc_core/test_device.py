from __future__ import annotations

import pytest
import torch

from masc_core.device import resolve_device
from masc_core.errors import ConfigError


def test_names() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == expected


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:99", ""])
def test_what_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="device: "):
        resolve_device(name)
