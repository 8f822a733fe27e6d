"""What a tokenizer is trained for, and what its discriminator is trained for.

    tokenizer      mse + p lpips + w adversarial + codebook + commitment + entropy
    discriminator  w (real against reconstructed)

`training.losses.adversarial` has the adversarial losses. Both sides join in at the same step;
before it the discriminator's gradient is zero, and its weights stay as they are. The discriminator
judges what the tokenizer made of the same batch a moment before, in the same state of both. The
discriminator normalises each micro-batch of each process by its own statistics. The running ones
play no part in training; under DDP they are the main process's.

Shapes: B images, S pixels a side, E code dimensions, h and w grid.
"""

from __future__ import annotations

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
from training.losses.lpips import Lpips


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
    """Loss of the tokenizer, without LPIPS or adversary where there is none.

    Attributes
    ----------
    features, images : of the last batch (B, E, h, w) and (B, 3, S, S), detached
    finished_steps : to be kept up to date
    """

    def __init__(
        self,
        model: VQModel,
        lpips: Lpips | None = None,
        lpips_weight: float = 1.0,
        adversary: Adversary | None = None,
        finished_steps: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.lpips, self.lpips_weight = model, lpips, lpips_weight
        # Inside a dataclass the discriminator is no submodule: it is not this objective's to train.
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
        if self.lpips is not None:
            parts["lpips"] = self.lpips(images, originals).mean()
            loss = loss + self.lpips_weight * parts["lpips"]
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
