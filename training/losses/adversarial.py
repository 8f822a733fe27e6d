"""The discriminator of a GAN, and the losses on its logits, which are high for real images.

==============  ==================================================  ===================
kind            discriminator                                       generator
==============  ==================================================  ===================
hinge           (mean relu(1 - D(x)) + mean relu(1 + D(y))) / 2     -mean D(y)
non-saturating  (mean softplus(-D(x)) + mean softplus(D(y))) / 2    mean softplus(-D(y))
==============  ==================================================  ===================

x is real, y fake. LlamaGen's own "non-saturating" swaps the arguments of the cross entropy, so that
constants become logits; here it is Goodfellow's.

Goodfellow et al.: Generative Adversarial Nets. NeurIPS 2014. Lim, Ye: Geometric GAN. 2017.
Isola, Zhu, Zhou, Efros: Image-to-Image Translation with Conditional Adversarial Networks. CVPR
2017 (PatchGAN).

Shapes: B images, H and W pixels, h and w patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from masc_core.errors import ConfigError

AdversarialLoss = Literal["hinge", "non-saturating"]

MAX_BALANCE = 1e4
KERNEL = 4
WIDEST = 8  # multiples of `channels`


def discriminator_loss(kind: AdversarialLoss, real: Tensor, fake: Tensor) -> Tensor:
    """Scalar that is small when the logits tell real images from fake ones."""
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def generator_loss(kind: AdversarialLoss, fake: Tensor) -> Tensor:
    """Scalar that is small when fake images pass as real ones."""
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


def accuracy(real: Tensor, fake: Tensor) -> Tensor:
    """Share of the logits with the right sign, a scalar; 1/2 by chance."""
    return 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean())


def discriminator_logits(discriminator: nn.Module, images: Tensor) -> Tensor:
    """Logits whose gradient reaches the images and no weight of the discriminator."""
    state = {name: tensor.detach() for name, tensor in _state(discriminator)}
    return functional_call(discriminator, state, (images,))


def gradient_balance(reconstruction: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """Weight under which two losses pull equally hard at a weight tensor: a scalar, at most 1e4.

    ``|d reconstruction / d last| / (|d adversarial / d last| + 1e-4)``, without a gradient.
    """
    pulls = (
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
        for loss in (reconstruction, adversarial)
    )
    balance: Tensor = next(pulls) / (next(pulls) + 1e-4)
    return balance.clamp(0, MAX_BALANCE).detach()


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())


class PatchDiscriminator(nn.Module):
    """Judge images patch by patch; state-dict compatible with LlamaGen's.

    Strided 4x4 convolutions with batch normalisation and leaky ReLU, then one logit a patch.
    Batches are normalised by their own statistics in training, so real and fake images go through
    it separately.

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
        return self.main(images)


def num_patches(image_size: int, num_layers: int) -> int:
    """Patches a side of a square image; a `ConfigError` where it is too small for the layers."""
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
