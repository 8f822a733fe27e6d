"""What a tokenizer is trained for, and what its discriminator is trained for.

    tokenizer      mse + p distance + w adversarial + codebook + commitment + entropy
    discriminator  w (real against reconstructed)

Distances are perceptual ones, none or several: LPIPS, that in EfficientNet's features.
`training.losses.adversarial` has the adversarial losses. Both sides join in at the same step;
before it the discriminator's gradient is zero, and its weights stay as they are. The discriminator
judges what the tokenizer made of the same batch a moment before, in the same state of both. The
discriminator normalises each micro-batch of each process by its own statistics. The running ones
play no part in training; under DDP they are the main process's.

Shapes: B images, S pixels a side, E code dimensions, h and w grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masc_core.models.vq import VQModel, pixels_to_float
from training.losses.adversarial import (
    AdversarialLoss,
    PatchDiscriminator,
    accuracy,
    discriminator_logits,
    discriminator_loss,
    generator_loss,
    gradient_balance,
)


@dataclass(frozen=True, slots=True)
class WeightedDistance:
    """A perceptual distance and its weight p."""

    module: nn.Module  # images (B, 3, S, S) in [-1, 1], twice, to distances (B,)
    weight: float


@dataclass(frozen=True, slots=True)
class Adversary:
    """The adversarial part."""

    discriminator: PatchDiscriminator  # who judges
    kind: AdversarialLoss  # of the losses
    weight: float  # w
    start: int  # step, counted from 1, from which on it takes part
    # multiply w by what makes it pull as hard as the reconstruction at the last layer
    adaptive: bool


class TokenizerLoss(nn.Module):
    """Loss of the tokenizer, without distances or adversary where there are none.

    Attributes
    ----------
    features, images : of the last batch (B, E, h, w) and (B, 3, S, S), detached
    finished_steps : to be kept up to date
    """

    def __init__(
        self,
        model: VQModel,
        distances: Mapping[str, WeightedDistance] | None = None,
        adversary: Adversary | None = None,
        finished_steps: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        # Inside data classes distances and discriminator are no submodules: they are not this
        # objective's to train.
        self.distances = dict(distances or {})
        self.adversary, self.finished_steps = adversary, finished_steps
        self.features, self.images = torch.empty(0), torch.empty(0)

    @property
    def is_adversarial(self) -> bool:
        """Whether the adversary takes part in the step to come."""
        return self.adversary is not None and self.finished_steps + 1 >= self.adversary.start

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Losses of images uint8 (B, S, S, 3)."""
        originals = pixels_to_float(pixels)
        features = self.model.features(originals)
        quantized = self.model.quantize(features)
        images = self.model.decode(quantized.quant).float()
        self.features, self.images = features.detach(), images.detach()
        parts = {"mse": F.mse_loss(images, originals)}
        loss = parts["mse"]
        for name, distance in self.distances.items():
            parts[name] = distance.module(images, originals).mean()
            loss = loss + distance.weight * parts[name]
        if self.adversary is not None and self.is_adversarial:
            parts["adversarial"] = self._adversarial(self.adversary, images, loss)
            loss = loss + parts["adversarial"]
        values = {name: part.detach() for name, part in parts.items()}
        return {"loss": loss + quantized.loss, **values, **quantized.parts}

    def _adversarial(self, adversary: Adversary, images: Tensor, loss: Tensor) -> Tensor:
        """Its loss, weighted."""
        adversarial = generator_loss(
            adversary.kind, discriminator_logits(adversary.discriminator, images)
        )
        if not adversary.adaptive:
            return adversary.weight * adversarial
        last = self.model.decoder.conv_out.weight
        return adversary.weight * gradient_balance(loss, adversarial, last) * adversarial


class DiscriminatorLoss(nn.Module):
    """Loss of the discriminator, on what the tokenizer's objective made just before."""

    def __init__(self, adversary: Adversary, reconstruction: TokenizerLoss) -> None:
        super().__init__()
        self.model, self.adversary = adversary.discriminator, adversary
        self._reconstruction = (reconstruction,)  # in a tuple, for it is no submodule

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Losses of images uint8 (B, S, S, 3), the ones that were just reconstructed."""
        (reconstruction,) = self._reconstruction
        if not reconstruction.is_adversarial:
            # Zero gradients and not none: processes that are joined wait for those of all weights.
            return {"loss": 0 * torch.stack([p.sum() for p in self.model.parameters()]).sum()}
        real, fake = self.model(pixels_to_float(pixels)), self.model(reconstruction.images)
        loss = discriminator_loss(self.adversary.kind, real.float(), fake.float())
        return {
            "loss": self.adversary.weight * loss,
            "discriminator": loss.detach(),
            "discriminator_accuracy": accuracy(real.detach(), fake.detach()),
        }
