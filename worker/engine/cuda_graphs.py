"""A batch on a GPU: a whole step is one captured graph.

A graph is captured for each shape in `capture_shapes` when it is first needed, or ahead; a batch
takes the smallest that holds it. Replaying one reads tables and inputs on the device, so the host
writes only when images join or leave. What images have drawn, and that logits were not finite, it
reads one step late: the device always has the next step to do.
On a CPU the same steps are done without being captured, for tests.

Legend: S slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from masc_core.device import new_stream
from masc_core.generation.batch import (
    Batch,
    HostCopy,
    SlotAssignment,
    StepShape,
    any_filters,
    batch_rows,
    lay_out,
    refined_images,
)
from masc_core.generation.step import StepInputs
from masc_core.models.gpt import GPT
from masc_core.models.kv_cache import has_triton
from masc_core.sampling.in_cluster import CodeSampler

NUM_WARM_UPS = 2  # the first compiles
# One row costs what two cost, and would take other kernels than they do.
ROWS = (2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072)


class GraphBatch(Batch):
    """Steps images as `Batch` does.

    Parameters
    ----------
    model : in evaluation mode; on a GPU its feed-forward weights are laid out anew
    code_sampler : on the model's device
    num_slots : S
    deterministic : let every step have one shape, that of a full batch, so that an image is the
        same bit for bit whatever else is in the batch; small batches then take as long as full ones
    captured : whether steps are captured, or done one by one; on a CPU they are not
    """

    async_copy = True

    def __init__(
        self,
        model: GPT,
        code_sampler: CodeSampler,
        num_slots: int,
        *,
        deterministic: bool = False,
        captured: bool = True,
    ) -> None:
        on_gpu = model.output.weight.is_cuda
        self._captured, self._compiled = on_gpu and captured, on_gpu and has_triton()
        super().__init__(model, code_sampler, num_slots, compiled=self._compiled)
        self._shapes = capture_shapes(
            num_slots, only_largest=deterministic, with_refiner="refine" in code_sampler.decodings
        )
        num_inputs = len(StepInputs._fields), self._shapes[-1].rows
        self._all_inputs = torch.zeros(num_inputs, dtype=torch.int64).to(self._device)
        self._graphs: dict[StepShape, torch.cuda.CUDAGraph] = {}
        self._flags: tuple[Sequence[SlotAssignment], HostCopy] | None = None  # of the step before

    @torch.inference_mode()
    def prepare(self) -> None:
        """Capture all shapes, or compile; images in the batch are unaffected."""
        self._shape = None
        for shape in self._shapes:
            if self._captured:
                self._capture(shape)
            elif self._compiled:
                self._write_inputs(shape, ())
                self._run_now(shape)

    def _arrange(self) -> StepShape:
        shape = select_shape(self._shapes, self._assignments)
        if self._captured:
            self._capture(shape)
        self._write_inputs(shape, self._assignments)
        return shape

    def _write_inputs(self, shape: StepShape, assignments: Sequence[SlotAssignment]) -> None:
        width = self._all_inputs.shape[1]
        layout = lay_out(shape, assignments, padding_slot=self._num_slots)
        rows = [row + [0] * (width - len(row)) for row in layout]
        self._all_inputs.copy_(self._upload(torch.tensor(rows)))

    def _run(self, shape: StepShape) -> float:
        if not self._captured:
            return self._run_now(shape)
        self._graphs[shape].replay()
        return 0.0

    def _run_now(self, shape: StepShape) -> float:
        numbers = (shape.rows,) * 3 + (shape.images,) * 2 + (shape.refined,)
        parts = [row[:num] for row, num in zip(self._all_inputs, numbers, strict=True)]
        return self._step(StepInputs(*parts), has_filters=shape.has_filters)

    def _capture(self, shape: StepShape) -> None:
        """Capture a step, once. Before and after it the inputs say that no image is here."""
        if shape in self._graphs:
            return
        self._write_inputs(shape, ())
        stream = new_stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_UPS):
                self._run_now(shape)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self._run_now(shape)
        self._graphs[shape] = graph

    def _failed(self) -> list[int]:
        """Slots of images that are still here, of the step before the one that was just begun."""
        before, self._flags = self._flags, (self._assignments, HostCopy(self.tables.finite.clone()))
        if before is None:
            return []
        slots, copy = before
        (finite,) = copy.wait()
        if finite.all():
            return []
        values, here = finite.tolist(), {id(assignment) for assignment in self._assignments}
        # A slot may have been given to another image meanwhile.
        return [
            assignment.slot
            for assignment in slots
            if id(assignment) in here and not values[assignment.slot]
        ]


def capture_shapes(
    capacity: int, *, only_largest: bool = False, with_refiner: bool = False
) -> list[StepShape]:
    """All shapes for a capacity in rows, smaller ones first.

    A shape has room for half as many images as rows, if nearly all are guided, or for as many; its
    refiner looks at all of them or at none.

    Parameters
    ----------
    capacity : rows that images may take
    only_largest : let every step have one shape: that of a full batch of images that are not
        guided, with filters and, where there can be, the refiner
    with_refiner : whether images can ask for the refiner
    """
    largest = max(2, capacity + capacity % 2)
    if only_largest:
        return [StepShape(largest, largest, has_filters=True, refined=largest * with_refiner)]
    heights = [*(rows for rows in ROWS if rows < largest), largest]
    return [
        StepShape(rows, images, has_filters, refined)
        for rows in heights
        for images in (rows // 2, rows)
        for has_filters in (False, True)
        for refined in ((0, images) if with_refiner else (0,))
    ]


def select_shape(shapes: Sequence[StepShape], assignments: Sequence[SlotAssignment]) -> StepShape:
    """Return the first shape, of those in ascending order, that holds the images."""
    rows = batch_rows(assignments)
    has_filters, refined = any_filters(assignments), len(refined_images(assignments))
    return next(
        shape
        for shape in shapes
        if shape.rows >= rows and shape.images >= len(assignments)
        if shape.has_filters >= has_filters and shape.refined >= refined
    )
