"""The device's side of the engine on a GPU: a whole step is one recorded graph.

A graph is recorded for each shape of a batch when it is first needed, or ahead; see
`worker.engine.buckets`. Replaying one reads tables and indices on the device, so the host writes
only when images join or leave. It hears of logits that are not finite one step late, which is also
how far it runs ahead of the device.
On the CPU the same steps are done without being recorded.
This module does not know about tasks, nor when an image is done.

Legend: S slots, R rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from masc_core.device import new_stream
from masc_core.generation.slots import Member, num_rows, seat
from masc_core.generation.step import Indices, StaticStep
from masc_core.generation.tables import columns_of
from masc_core.image_spec import ImageSpec, check_specs
from masc_core.in_cluster import InClusterDecoder
from masc_core.models.gpt import GPT
from masc_core.models.slot_cache import has_triton
from worker.engine.buckets import Bucket, buckets, choose, lay_out
from worker.engine.runner import Progress, StepReport

NUM_WARM_UPS = 2  # the first compiles


@dataclass(frozen=True, slots=True)
class _Flags:
    """What a step has said of its images, on the way to the host."""

    finite: Tensor  # bool (S + 1,)
    members: Sequence[Member]
    arrived: torch.cuda.Event | None


class GraphRunner:
    """Runs images in slots, as `worker.engine.runner.Runner` does.

    Parameters
    ----------
    model : in evaluation mode; on a GPU its feed-forward weights are laid out anew
    decoder : on the model's device
    num_slots : S
    deterministic : let every step have one shape, that of a full batch, so that an image has the
        same bits in any company; small batches then take as long as full ones
    """

    def __init__(
        self,
        model: GPT,
        decoder: InClusterDecoder,
        num_slots: int,
        *,
        deterministic: bool = False,
    ) -> None:
        self._device = model.output.weight.device
        self._on_gpu = self._device.type == "cuda"
        if self._on_gpu:
            for block in model.blocks:
                block.feed_forward.fuse()
        self._config, self._decoder, self._num_slots = model.config, decoder, num_slots
        self._static_step = StaticStep(
            model, decoder, num_slots, compiled=self._on_gpu and has_triton()
        )
        self._buckets = buckets(
            num_slots, only_largest=deterministic, with_refiner="refine" in decoder.decodings
        )
        self._indices = torch.zeros(5, self._buckets[-1].rows, dtype=torch.int64).to(self._device)
        self._graphs: dict[Bucket, torch.cuda.CUDAGraph] = {}
        self._members: list[Member] = []
        self._bucket: Bucket | None = None  # of these members, once it is needed
        self._flags: _Flags | None = None  # of the step before
        self._age = 0

    @property
    def num_rows(self) -> int:
        """Rows of the transformer's batch in use, without filling."""
        return num_rows(self._members)

    @torch.inference_mode()
    def prepare(self) -> None:
        """Record all shapes; the images, if any, do not notice."""
        self._bucket = None
        if self._on_gpu:
            for bucket in self._buckets:
                self._record(bucket)

    def join(self, specs: Sequence[ImageSpec]) -> list[int]:
        """Add images at their first position, all of them or none.

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
        joining = seat(specs, self._members, self._num_slots, self._age)
        slots = [member.slot for member in joining]
        # Into slots of nobody: whatever fails, those who are here are not concerned.
        self._static_step.tables.put(self._upload(slots), columns_of(specs, self._device))
        self._members, self._bucket = self._members + joining, None
        return slots

    def leave(self, slots: Collection[int]) -> None:
        """Let images go; their slots are free."""
        self._members = [member for member in self._members if member.slot not in slots]
        self._bucket = None

    @torch.inference_mode()
    def step(self) -> StepReport:
        """Draw the next position of every image; there is at least one, and none is complete."""
        if self._bucket is None:
            self._bucket = self._arrange()
        if self._on_gpu:
            self._graphs[self._bucket].replay()
        else:
            self._run(self._bucket)
        before, self._flags = self._flags, self._send_flags()
        self._age += 1
        return StepReport(self._failed(before), code_seconds=0.0)

    def read(self, slots: Sequence[int]) -> Progress:
        """What some images have drawn; waits for the device."""
        tables, chosen = self._static_step.tables, self._upload(slots)
        finite = tables.finite[chosen].cpu()
        return Progress(tables.codes[chosen].cpu(), tables.entropies[chosen].cpu(), finite)

    def _arrange(self) -> Bucket:
        """Write the indices of the images that are here now."""
        bucket = choose(self._buckets, self._members)
        if self._on_gpu:
            self._record(bucket)
        self._write_indices(bucket, self._members)
        return bucket

    def _write_indices(self, bucket: Bucket, members: Sequence[Member]) -> None:
        width = self._indices.shape[1]
        layout = lay_out(bucket, members, spare=self._num_slots)
        rows = [row + [0] * (width - len(row)) for row in layout]
        self._indices.copy_(self._upload(rows))

    def _run(self, bucket: Bucket) -> None:
        numbers = (bucket.rows, bucket.rows, bucket.rows, bucket.images, bucket.images)
        parts = [row[:num] for row, num in zip(self._indices, numbers, strict=True)]
        self._static_step(Indices(*parts), filters=bucket.filters, refine=bucket.refine)

    def _record(self, bucket: Bucket) -> None:
        """Record a step, once. Before and after it the indices say that nobody is here."""
        if bucket in self._graphs:
            return
        self._write_indices(bucket, ())
        stream = new_stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_UPS):
                self._run(bucket)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self._run(bucket)
        self._graphs[bucket] = graph

    def _send_flags(self) -> _Flags:
        finite = self._static_step.tables.finite
        if not self._on_gpu:
            return _Flags(finite.clone(), self._members, None)
        host = torch.empty(finite.shape, dtype=torch.bool, pin_memory=True)
        host.copy_(finite, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return _Flags(host, self._members, arrived)

    def _failed(self, flags: _Flags | None) -> list[int]:
        """Slots of images that are still here; a slot may have been given to another one."""
        if flags is None:
            return []
        if flags.arrived is not None:
            flags.arrived.synchronize()
        if flags.finite.all():
            return []
        finite, here = flags.finite.tolist(), {id(member) for member in self._members}
        return [m.slot for m in flags.members if id(m) in here and not finite[m.slot]]

    def _upload(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        made = torch.tensor(values, dtype=torch.int64)
        # From pinned memory: any other copy would wait for the work under way.
        return made.pin_memory().to(self._device, non_blocking=True) if self._on_gpu else made
