"""PatchGAN: real or reconstructed, judged patch by patch, state-dict compatible with LlamaGen.

Strided 4x4 convolutions with batch normalisation and leaky ReLU, then one logit a patch: high for
real images. Batches are normalised by their own statistics in training, so real and reconstructed
images go through it separately.

Isola, Zhu, Zhou, Efros: Image-to-Image Translation with Conditional Adversarial Networks.
CVPR 2017.

Shapes: B images, H and W pixels, h and w patches.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from masc_core.errors import ConfigError

KERNEL = 4
WIDEST = 8  # multiples of `channels`


class PatchDiscriminator(nn.Module):
    """Images to logits.

    Parameters
    ----------
    channels : of the first layer
    num_layers : strided layers; a patch covers 70x70 pixels with three
    """

    def __init__(self, channels: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        widths = [channels * min(1 << i, WIDEST) for i in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, channels, KERNEL, 2, 1), nn.LeakyReLU(0.2)]
        for i, (before, after) in enumerate(pairwise(widths), start=1):
            stride = 2 if i < num_layers else 1
            layers += [
                nn.Conv2d(before, after, KERNEL, stride, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv2d(widths[-1], 1, KERNEL, 1, 1))
        self.main = nn.Sequential(*layers)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1, h, w) of images (B, 3, H, W) in [-1, 1]."""
        logits: Tensor = self.main(images)
        return logits


def num_patches(image_size: int, num_layers: int) -> int:
    """Patches a side of a square image.

    Raises
    ------
    ConfigError : the image is too small for that many layers
    """
    size = image_size
    for stride in [2] * num_layers + [1, 1]:
        size = (size + 2 - KERNEL) // stride + 1
    if size < 1:
        raise ConfigError(
            f"disc_layers: {num_layers} strided layers leave nothing of {image_size} pixels"
        )
    return size


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
