"""The order of the data, its random bits, and batches that are made ahead of time.

Both are functions of (seed, step) and the place in the batch, so that a resumed run sees the same
data, and so does one on another number of ranks: a rank takes its share of the one global batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from training.loop.task import Indices, ItemRandomBits

PREFETCHED = 2  # steps

MicroBatch = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Batches:
    """The batches of a run, as one rank sees them."""

    make: Callable[[Indices, ItemRandomBits], MicroBatch]  # as `TrainingTask.batch`
    num_items: int  # of the run
    seed: int
    batch_size: int  # items of the global batch
    micro_batch: int  # items of this rank that go through the model together
    rank: int = 0  # whose share it is
    world_size: int = 1
    pinned: bool = False  # whether a GPU copies from them

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches; what is left over waits for another epoch."""
        return self.num_items // self.batch_size

    def of_step(self, step: int) -> list[MicroBatch]:
        """Micro-batches of step ``step``, counted from 0."""
        share = slice(self.rank, None, self.world_size)
        indices = self._indices(step)[share]
        random_bits = item_random_bits(self.seed, step, self.batch_size)[share]
        cuts = [slice(i, i + self.micro_batch) for i in range(0, len(indices), self.micro_batch)]
        return [self._make(indices[cut], random_bits[cut]) for cut in cuts]

    def prefetch(self, first: int, end: int) -> Generator[list[MicroBatch], None, None]:
        """The steps from ``first`` to before ``end``, made in a thread, until it is closed."""
        with ThreadPoolExecutor(1, "batches") as thread:
            waiting: deque[Future[list[MicroBatch]]] = deque()
            try:
                for step in range(first, end):
                    waiting.append(thread.submit(self.of_step, step))
                    if len(waiting) > PREFETCHED:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for step_batches in waiting:
                    step_batches.cancel()

    def _indices(self, step: int) -> Indices:
        epoch, number = divmod(step, self.steps_per_epoch)
        start = number * self.batch_size
        return epoch_order(self.num_items, self.seed, epoch)[start : start + self.batch_size]

    def _make(self, indices: Indices, random_bits: ItemRandomBits) -> MicroBatch:
        micro_batch = self.make(indices, random_bits)
        return tuple(tensor.pin_memory() for tensor in micro_batch) if self.pinned else micro_batch


def item_random_bits(seed: int, step: int, batch_size: int) -> ItemRandomBits:
    """Four random 64-bit words for each item of a global batch, uint64 (batch_size, 4)."""
    # The generator counts up in the counter's first word: steps do not overlap.
    generator = np.random.Philox(key=seed, counter=[0, step, 0, 0])
    return generator.random_raw(4 * batch_size).reshape(batch_size, 4)


@lru_cache(maxsize=2)  # batches of the next epoch are made before this one has ended
def epoch_order(num_items: int, seed: int, epoch: int) -> Indices:
    """Permutation int64 (num_items,) of an epoch; a function of its arguments alone."""
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    return torch.randperm(num_items, generator=generator).numpy()
