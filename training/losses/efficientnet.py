"""The distance of two images in the features of EfficientNet-Lite0, for want of LPIPS's weights.

    d(x, y) = sum over four depths l of  mean over places of  |f_l(x) - f_l(y)|^2

with features f_l of unit length at every place, as in LPIPS but without weights that people's
judgements gave. The depths are the last blocks at a half, a quarter, an eighth and a sixteenth of
the size of the images. Nothing in here learns or differs between training and evaluation.

Shapes: B images, S pixels a side, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from masc_core.io.files import sha256_file
from training.losses.lpips import FeatureDistance, unit_length
from training.pretrained.efficientnet import MEAN, SCALE, load_network

DEPTHS = (0, 2, 4, 10)  # blocks whose outputs are compared: of 16, 24, 40 and 112 channels


class EfficientNetDistance(FeatureDistance):
    """The distance; a `ConfigError` where the network is not installed.

    ``weights_sha256`` is of the file of the network's weights.
    """

    def __init__(self) -> None:
        super().__init__()
        network, weights = load_network()
        self.weights_sha256 = sha256_file(weights)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)  # noqa: SLF001
        self.blocks = network._blocks[: DEPTHS[-1] + 1]  # noqa: SLF001 - there is no other way in
        self.requires_grad_(requires_grad=False).eval()
        # Channels last take half the time of the other order on CPUs.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def train(self, mode: bool = True) -> EfficientNetDistance:  # noqa: ARG002, FBT001, FBT002 - torch's
        """Stay in evaluation mode: the statistics are those of ImageNet."""
        return super().train(mode=False)

    def weights(self) -> tuple[float, ...]:
        """The same for all channels of all depths."""
        return (1.0,) * len(DEPTHS)

    def unit_features(self, images: Tensor) -> list[Tensor]:
        """Features (B, C, h, w) at each depth."""
        x = self.stem((images * 127.5 + (127.5 - MEAN)) / SCALE)
        found = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in DEPTHS:
                found.append(unit_length(x.float()))
        return found
