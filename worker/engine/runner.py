"""The device's side of the engine: the batch, and what its images have drawn so far.

This module does not know about tasks, nor when an image is done.

Legend: B images, L positions of an image, S slots.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from masc_core.generation.batch import ImageBatch
from masc_core.image_spec import ImageSpec
from masc_core.in_cluster import InClusterDecoder
from masc_core.models.gpt import GPT


@dataclass(frozen=True, slots=True)
class StepReport:
    """What is known after a step.

    Attributes
    ----------
    failed : slots of images that are known by now to have had logits that were not finite
    code_seconds : time to turn clusters into codes; on a GPU the time to enqueue that, and nothing
        where it is part of a recorded step
    """

    failed: Sequence[int]
    code_seconds: float


class Progress(NamedTuple):
    """What images have drawn, on the CPU.

    Attributes
    ----------
    codes : int64 (n, L)
    entropies : float32 (n, L), bits
    finite : bool (n,), whether all their logits were
    """

    codes: Tensor
    entropies: Tensor
    finite: Tensor


class StepRunner(Protocol):
    """What an engine steps. Images are known by the slot that `join` gives them."""

    @property
    def num_rows(self) -> int:
        """Rows of the transformer's batch in use."""

    def prepare(self) -> None:
        """Do ahead what would make the first steps slow."""

    def join(self, specs: Sequence[ImageSpec]) -> list[int]:
        """Add images at their first position, all of them or none; return their slots."""

    def leave(self, slots: Collection[int]) -> None:
        """Let images go; their slots are free."""

    def step(self) -> StepReport:
        """Draw the next position of every image."""

    def read(self, slots: Sequence[int]) -> Progress:
        """What some images have drawn; waits for the device."""


RunnerFactory = Callable[[GPT, InClusterDecoder, int], StepRunner]


class Runner:
    """An `ImageBatch` with memory.

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

    @property
    def num_rows(self) -> int:
        """Rows of the transformer's batch in use."""
        return self._batch.num_rows

    def prepare(self) -> None:
        """Nothing: every step is as fast as any other."""

    def join(self, specs: Sequence[ImageSpec]) -> list[int]:
        """Add images; see `ImageBatch.join`."""
        return self._batch.join(specs)

    def leave(self, slots: Collection[int]) -> None:
        """Let images go; see `ImageBatch.leave`."""
        self._batch.leave(slots)

    def step(self) -> StepReport:
        """Draw the next position of every image, and remember it."""
        drawn = self._batch.step()
        self._codes[drawn.slots, drawn.positions] = drawn.codes
        self._entropies[drawn.slots, drawn.positions] = drawn.entropies
        failed = drawn.slots[~drawn.finite].tolist()  # waits for the device
        return StepReport(failed, drawn.code_seconds)

    def read(self, slots: Sequence[int]) -> Progress:
        """What some images have drawn; those that failed were reported."""
        chosen = torch.tensor(slots, device=self._codes.device)
        finite = torch.ones(len(slots), dtype=torch.bool)
        return Progress(self._codes[chosen].cpu(), self._entropies[chosen].cpu(), finite)
