"""The device's side of the engine: the batch, and what its images have drawn so far.

This module does not know about tasks, nor when an image is done.

Legend: B images, L positions of an image, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from masc_core.image_batch import Drawn, ImageBatch
from masc_core.image_spec import ImageSpec
from masc_core.in_cluster import InClusterDecoder
from masc_core.models.gpt import GPT


class Runner:
    """An `ImageBatch` with memory. Images are known by their conditional slot.

    Parameters
    ----------
    model : in evaluation mode
    decoder : on the model's device
    num_slots : S
    """

    def __init__(self, model: GPT, decoder: InClusterDecoder, num_slots: int) -> None:
        device = model.output.weight.device
        shape = (num_slots, model.config.block_size)
        self._batch = ImageBatch(model, decoder, num_slots)
        self._codes = torch.zeros(shape, dtype=torch.int64, device=device)
        self._entropies = torch.zeros(shape, dtype=torch.float32, device=device)
        self._slots = torch.zeros(0, dtype=torch.int64, device=device)  # of the images, (B,)

    @property
    def num_rows(self) -> int:
        """Rows of the transformer's batch in use."""
        return self._batch.num_rows

    def join(self, specs: Sequence[ImageSpec], slots: Sequence[tuple[int, int]]) -> None:
        """Add images; see `ImageBatch.join`."""
        self._batch.join(specs, slots)
        self._slots = torch.cat([self._slots, self._slots.new_tensor([slot for slot, _ in slots])])

    def keep(self, images: Sequence[int]) -> None:
        """Let all images go but these; see `ImageBatch.keep`."""
        self._batch.keep(images)
        self._slots = self._slots[
            torch.tensor(images, dtype=torch.int64, device=self._slots.device)
        ]

    def step(self) -> Drawn:
        """Draw the next position of every image, and remember it."""
        drawn = self._batch.step()
        self._codes[self._slots, drawn.positions] = drawn.codes
        self._entropies[self._slots, drawn.positions] = drawn.entropies
        return drawn

    def read(self, slots: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Codes and entropies of some images, each (len(slots), L), copied to the CPU."""
        chosen = torch.tensor(slots, device=self._slots.device)
        return self._codes[chosen].cpu(), self._entropies[chosen].cpu()
