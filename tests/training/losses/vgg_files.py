"""Files with the keys and shapes of torchvision's VGG16 and of LPIPS, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

CONVOLUTIONS = {  # number of the layer: channels out and in
    0: (64, 3),
    2: (64, 64),
    5: (128, 64),
    7: (128, 128),
    10: (256, 128),
    12: (256, 256),
    14: (256, 256),
    17: (512, 256),
    19: (512, 512),
    21: (512, 512),
    24: (512, 512),
    26: (512, 512),
    28: (512, 512),
}


def vgg_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {"classifier.6.bias": torch.zeros(1000)}
    for i, (out, width) in CONVOLUTIONS.items():
        weight = torch.randn(out, width, 3, 3, generator=generator)
        state[f"features.{i}.weight"] = weight * (2 / (9 * width)) ** 0.5
        state[f"features.{i}.bias"] = 0.1 * torch.randn(out, generator=generator)
    return state


def linear_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for i, width in enumerate((64, 128, 256, 512, 512))
    }


def write_weights(folder: Path) -> tuple[Path, Path]:
    """Write both, as torch.save does."""
    vgg, linear = folder / "vgg16.pth", folder / "vgg.pth"
    torch.save(vgg_weights(), vgg)
    torch.save(linear_weights(), linear)
    return vgg, linear
