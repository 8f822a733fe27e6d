"""Images on their way through the transformer together, each at a position of its own.

Everything is vectorised over the images; only when one joins or leaves are they looked at one by
one. `generate` runs a batch from the first position to the last, the worker's engine lets images
join and leave at any step, and a GPU records the steps (`worker.engine.cuda_graphs`).

Legend: n images that are read, L positions of an image, S slots.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from masc_core.generation.host_copy import HostCopy
from masc_core.generation.slots import (
    Slot,
    StepShape,
    allocate,
    has_filters,
    lay_out,
    num_rows,
    refined_images,
)
from masc_core.generation.step import CPU_ROW_MULTIPLE, Indices, Step
from masc_core.generation.tables import Tables, pack_params, unpack_params
from masc_core.models.gpt import GPT
from masc_core.sampling.in_cluster import InClusterDecoder
from masc_core.sampling.params import SamplingParams, check_specs


@dataclass(frozen=True, slots=True)
class StepReport:
    """What is known after a step.

    Attributes
    ----------
    failed : slots of images that are known by now to have had logits that were not finite
    code_seconds : time to turn clusters into codes; on a GPU the time to enqueue that
    """

    failed: Sequence[int]
    code_seconds: float


class Drawn(NamedTuple):
    """What images have drawn so far, on the CPU.

    Attributes
    ----------
    codes : int64 (n, L)
    entropies : float32 (n, L), bits
    finite : bool (n,), whether all their logits were
    """

    codes: Tensor
    entropies: Tensor
    finite: Tensor


class Batch:
    """The images, none at first. They are known by the slots that `join` gives them.

    Parameters
    ----------
    model : in evaluation mode
    decoder : on the model's device
    num_slots : S, rows that images may take at once: a guided image takes two
    compiled, kernels : see `Step`

    Attributes
    ----------
    reads_late : whether what is read after a step is better waited for after the next one
    """

    reads_late = False

    def __init__(
        self,
        model: GPT,
        decoder: InClusterDecoder,
        num_slots: int,
        *,
        compiled: bool = False,
        kernels: bool = True,
    ) -> None:
        self._config, self._decoder, self._num_slots = model.config, decoder, num_slots
        self._device = model.output.weight.device
        self._step = Step(model, decoder, num_slots, compiled=compiled, kernels=kernels)
        self._slots: list[Slot] = []
        self._shape: StepShape | None = None  # of these images, once it is needed
        self._indices: Indices | None = None

    def __len__(self) -> int:
        """Images that are here."""
        return len(self._slots)

    @property
    def num_rows(self) -> int:
        """Rows of the transformer's batch that the images take, without filling."""
        return num_rows(self._slots)

    @property
    def tables(self) -> Tables:
        """What is known of the images, on the device."""
        return self._step.tables

    @torch.inference_mode()
    def prepare(self) -> None:
        """Do a step of nobody, so that it is known to work; the images, if any, do not notice."""
        shape = StepShape(rows=CPU_ROW_MULTIPLE, images=1, filters=False)
        self._shape, self._indices = None, self._lay_out(shape, ())
        self._run(shape)

    def join(self, specs: Sequence[SamplingParams]) -> list[int]:
        """Add images at their first position, behind those that are here: all of them or none.

        Parameters
        ----------
        specs : at least one

        Returns
        -------
        the slots by which the images are known until they leave

        Raises
        ------
        UnknownClassError, InvalidFieldError : a spec asks for what the model does not have
        ValueError : the images do not fit
        """
        check_specs(specs, self._config)
        for spec in specs:
            self._decoder.check(spec.decoding)
        joining = allocate(specs, self._slots, self._num_slots)
        indices = [slot.index for slot in joining]
        packed = self._upload(torch.cat([torch.tensor([indices]), pack_params(specs)]))
        # Into slots of nobody: whatever fails, those who are here are not affected.
        self.tables.put(packed[0], unpack_params(packed[1:]))
        self._slots, self._shape = self._slots + joining, None
        return indices

    def leave(self, slots: Collection[int]) -> None:
        """Let images go; their slots are free."""
        self._slots = [slot for slot in self._slots if slot.index not in slots]
        self._shape = None

    @torch.inference_mode()
    def step(self) -> StepReport:
        """Draw the next position of every image; there is at least one, and none is complete."""
        if self._shape is None:
            self._shape = self._arrange()
        code_seconds = self._run(self._shape)
        return StepReport(self._failed(), code_seconds)

    def read(self, slots: Sequence[int]) -> HostCopy:
        """Begin to read what some images have drawn by now: the columns of a `Drawn`."""
        chosen, tables = self._upload(torch.tensor(slots)), self.tables
        return HostCopy(tables.codes[chosen], tables.entropies[chosen], tables.finite[chosen])

    def _arrange(self) -> StepShape:
        """Choose a shape for the images that are here, and say where in it they are."""
        multiple = CPU_ROW_MULTIPLE if self._device.type == "cpu" else 1
        refined = len(refined_images(self._slots))
        shape = StepShape(
            rows=_round_up(self.num_rows, multiple),
            images=len(self),
            filters=has_filters(self._slots),
            refined=_round_up(refined, multiple),
        )
        self._indices = self._lay_out(shape, self._slots)
        return shape

    def _lay_out(self, shape: StepShape, slots: Sequence[Slot]) -> Indices:
        layout = lay_out(shape, slots, spare=self._num_slots)
        sizes = [len(part) for part in layout]
        flat = torch.tensor([index for part in layout for index in part])
        return Indices(*torch.split(self._upload(flat), sizes))

    def _run(self, shape: StepShape) -> float:
        """Do the step; return what `Step` does."""
        assert self._indices is not None  # noqa: S101 - `_arrange` came before
        return self._step(self._indices, filters=shape.filters)

    def _failed(self) -> list[int]:
        """Slots of images that had logits that were not finite; waits for the device."""
        finite = self.tables.finite
        if finite.all():
            return []
        values = finite.tolist()
        return [slot.index for slot in self._slots if not values[slot.index]]

    def _upload(self, made: Tensor) -> Tensor:
        """A tensor of the CPU on the device."""
        # From pinned memory: any other copy would wait for the work under way.
        on_gpu = self._device.type == "cuda"
        return made.pin_memory().to(self._device, non_blocking=True) if on_gpu else made


def _round_up(number: int, multiple: int) -> int:
    return number + -number % multiple
