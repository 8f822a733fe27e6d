"""The images of a batch: who is in it, where, and what they have drawn.

Everything is vectorised over the images; only when one joins or leaves are they looked at one by
one. `generate` runs a batch from the first position to the last, the worker's engine lets images
join and leave at any step, and a GPU captures the steps (`worker.engine.cuda_graphs`).

A step has the rows of its images, then one row for the null class of each guided image, then
padding, which belongs to a slot that no image gets.

Legend: n images that are read, L positions of an image, S slots.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from masc_core.generation.step import (
    CPU_ROW_MULTIPLE,
    Step,
    StepInputs,
    Tables,
    pack_params,
    unpack_params,
)
from masc_core.models.gpt import GPT
from masc_core.sampling.in_cluster import CodeSampler
from masc_core.sampling.params import SamplingParams, check_params

NO_SLOT = -1


@dataclass(frozen=True, slots=True)
class SlotAssignment:
    """An image in a batch, and the slots that its rows have."""

    params: SamplingParams
    slot: int  # of its row in the tables and of its conditional row in the cache
    uncond_slot: int  # of its row of the null class in the cache; ``NO_SLOT`` if not guided


class StepShape(NamedTuple):
    """Shape of a step, static in a captured one; counts include padding."""

    rows: int  # R, of the transformer's batch
    images: int  # B
    has_filters: bool  # whether any image may have filters
    refined: int = 0  # n, images whose codes the refiner draws


class Layout(NamedTuple):
    """Who is in a step, as numbers; see `masc_core.generation.step.StepInputs`."""

    slots: list[int]
    slot_of_row: list[int]
    is_uncond: list[int]
    images: list[int]
    uncond_rows: list[int]
    refined: list[int]


@dataclass(frozen=True, slots=True)
class StepReport:
    """What is known after a step."""

    failed: Sequence[int]  # slots of images known by now to have had logits that were not finite
    code_seconds: float  # to turn clusters into codes; on a GPU to enqueue that


class Drawn(NamedTuple):
    """What images have drawn so far, on the CPU."""

    codes: Tensor  # int64 (n, L)
    entropies: Tensor  # float32 (n, L), bits
    finite: Tensor  # bool (n,), whether all their logits were
    cluster_entropies: Tensor  # float32 (n, L), bits; (n, 0) without a partition


class Batch:
    """The images, none at first. They are known by the slots that `join` gives them.

    Parameters
    ----------
    model : in evaluation mode
    code_sampler : on the model's device
    num_slots : S, rows that images may take at once: a guided image takes two
    compiled, kernels : see `Step`

    Attributes
    ----------
    async_copy : whether results of a step are awaited only after the next step was launched
    tables : what is known of the images, on the device
    """

    async_copy = False

    def __init__(
        self,
        model: GPT,
        code_sampler: CodeSampler,
        num_slots: int,
        *,
        compiled: bool = False,
        kernels: bool = True,
    ) -> None:
        self._config, self._code_sampler, self._num_slots = model.config, code_sampler, num_slots
        self._device = model.output.weight.device
        self._step = Step(model, code_sampler, num_slots, compiled=compiled, kernels=kernels)
        self.tables: Tables = self._step.tables
        self._assignments: list[SlotAssignment] = []
        self._shape: StepShape | None = None  # of these images, once it is needed
        self._inputs: StepInputs | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self._assignments)

    @property
    def batch_rows(self) -> int:
        """Rows that the images take, without padding."""
        return batch_rows(self._assignments)

    @torch.inference_mode()
    def prepare(self) -> None:
        """Do a step of padding alone, so that it is known to work; no image is affected."""
        shape = StepShape(rows=CPU_ROW_MULTIPLE, images=1, has_filters=False)
        self._shape, self._inputs = None, self._lay_out(shape, ())
        self._run(shape)

    def check(self, params_list: Sequence[SamplingParams]) -> None:
        """Refuse images that the model cannot make.

        Raises
        ------
        UnknownClassError, InvalidFieldError : an image asks for what the model does not have
        ValueError : no images
        """
        check_params(params_list, self._config)
        for params in params_list:
            self._code_sampler.check(params)

    def join(self, params_list: Sequence[SamplingParams]) -> list[int]:
        """Add images at their first position, all of them or none; return the slots they get.

        Raises
        ------
        UnknownClassError, InvalidFieldError, ValueError : as from `check`, or they do not fit
        """
        self.check(params_list)
        joining = allocate(params_list, self._assignments, self._num_slots)
        indices = [assignment.slot for assignment in joining]
        packed_params = pack_params(params_list, self._config.block_size)
        packed = self._upload(torch.cat([torch.tensor([indices]), packed_params]))
        # Into free slots: whatever fails, the images in the batch are not affected.
        self.tables.put(packed[0], unpack_params(packed[1:]))
        self._assignments, self._shape = self._assignments + joining, None
        return indices

    def leave(self, slots: Collection[int]) -> None:
        """Let images go; their slots are free."""
        self._assignments = [
            assignment for assignment in self._assignments if assignment.slot not in slots
        ]
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
        chosen = self._upload(torch.tensor(slots))
        return HostCopy(*(getattr(self.tables, name)[chosen] for name in Drawn._fields))

    def _arrange(self) -> StepShape:
        """Choose a shape for the images, and lay them out in it."""
        multiple = CPU_ROW_MULTIPLE if self._device.type == "cpu" else 1
        refined = len(refined_images(self._assignments))
        shape = StepShape(
            rows=_round_up(self.batch_rows, multiple),
            images=len(self),
            has_filters=any_filters(self._assignments),
            refined=_round_up(refined, multiple),
        )
        self._inputs = self._lay_out(shape, self._assignments)
        return shape

    def _lay_out(self, shape: StepShape, assignments: Sequence[SlotAssignment]) -> StepInputs:
        layout = lay_out(shape, assignments, padding_slot=self._num_slots)
        sizes = [len(part) for part in layout]
        flat = torch.tensor([index for part in layout for index in part])
        return StepInputs(*torch.split(self._upload(flat), sizes))

    def _run(self, shape: StepShape) -> float:
        assert self._inputs is not None  # noqa: S101 - `_arrange` came before
        return self._step(self._inputs, has_filters=shape.has_filters)

    def _failed(self) -> list[int]:
        """Slots of images that had logits that were not finite; waits for the device."""
        finite = self.tables.finite
        if finite.all():
            return []
        values = finite.tolist()
        return [assignment.slot for assignment in self._assignments if not values[assignment.slot]]

    def _upload(self, made: Tensor) -> Tensor:
        """A tensor of the CPU on the device."""
        # From pinned memory: any other copy would wait for the work under way.
        on_gpu = self._device.type == "cuda"
        return made.pin_memory().to(self._device, non_blocking=True) if on_gpu else made


class HostCopy:
    """Copies of tensors on their way to the host; the device goes on meanwhile.

    Parameters
    ----------
    tensors : as they are when the device has done what was enqueued so far; on a CPU they are
        taken as they are, and must not be changed
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors, self._arrived = tensors, None
        if tensors[0].is_cuda:
            self._tensors = tuple(_begin_copy(tensor) for tensor in tensors)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def wait(self) -> tuple[Tensor, ...]:
        """Wait for the copies, and return them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensors


def _begin_copy(tensor: Tensor) -> Tensor:
    # Only to pinned memory does a copy not wait for its end.
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def batch_rows(assignments: Sequence[SlotAssignment]) -> int:
    """Rows of the transformer's batch that the images take."""
    return sum(assignment.params.batch_rows for assignment in assignments)


def allocate(
    params_list: Sequence[SamplingParams], assignments: Sequence[SlotAssignment], num_slots: int
) -> list[SlotAssignment]:
    """Find room, among S slots, for images that join others together; no image is moved."""
    taken = {
        slot for assignment in assignments for slot in (assignment.slot, assignment.uncond_slot)
    }
    free = [index for index in range(num_slots) if index not in taken]
    needed = sum(params.batch_rows for params in params_list)
    if needed > len(free):
        raise ValueError(f"{needed} rows do not fit, {len(free)} are free")
    indices = iter(free)
    return [
        SlotAssignment(params, next(indices), NO_SLOT if params.batch_rows == 1 else next(indices))
        for params in params_list
    ]


def refined_images(assignments: Sequence[SlotAssignment]) -> list[int]:
    """Which of the images have their codes drawn by the refiner."""
    return [i for i, assignment in enumerate(assignments) if assignment.params.decoding == "refine"]


def any_filters(assignments: Sequence[SlotAssignment]) -> bool:
    """Whether any image has filters."""
    return any(assignment.params.has_filters for assignment in assignments)


def lay_out(shape: StepShape, assignments: Sequence[SlotAssignment], padding_slot: int) -> Layout:
    """Place images in a shape that holds them; ``padding_slot`` is the slot of the padding."""
    guided = [assignment for assignment in assignments if assignment.uncond_slot != NO_SLOT]
    rows = [(assignment.slot, assignment.slot, 0) for assignment in assignments]
    rows += [(assignment.uncond_slot, assignment.slot, 1) for assignment in guided]
    rows += [(padding_slot, padding_slot, 0)] * (shape.rows - len(rows))
    cache_slots, slot_of_row, is_uncond = map(list, zip(*rows, strict=True))
    images = [assignment.slot for assignment in assignments]
    uncond_row_of = {assignment.slot: len(assignments) + i for i, assignment in enumerate(guided)}
    uncond_rows = [uncond_row_of.get(index, row) for row, index in enumerate(images)]
    padding = range(len(assignments), shape.images)
    # Padding repeats the first image: its code is written twice, and is the same both times.
    refined = range(shape.images) if shape.refined == shape.images else refined_images(assignments)
    return Layout(
        cache_slots,
        slot_of_row,
        is_uncond,
        images + [padding_slot] * len(padding),
        [*uncond_rows, *padding],
        [*refined, *[*refined][:1] * (shape.refined - len(refined))],
    )


def _round_up(number: int, multiple: int) -> int:
    return number + -number % multiple
